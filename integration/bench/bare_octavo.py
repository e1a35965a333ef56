"""Makes octavo's kernels and tests' references importable where octavo's own dependencies may be missing.

`octavo` and `octavo.runner` import the whole engine when they are imported: here they are packages with their folders
and nothing more. To be imported before anything of octavo is.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import SimpleNamespace

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "backend/octavo"


class _Struct:
    """Stands for msgspec.Struct: a module beside the CPU's sampler defines one, nothing here makes any."""

    def __init_subclass__(cls, **settings: object) -> None:
        pass


def _enter(name: str, folder: Path) -> None:
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[name] = module_from_spec(spec)


_enter("octavo", PACKAGE)
_enter("octavo.runner", PACKAGE / "runner")
if find_spec("msgspec") is None:
    sys.modules["msgspec"] = SimpleNamespace(Struct=_Struct)  # type: ignore[assignment]
sys.path.insert(0, str(REPOSITORY / "tests"))
