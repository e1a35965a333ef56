"""Makes octavo importable where packages that it depends on may be missing. To be imported before anything of octavo.

`octavo` itself is a package with its folder and nothing more: what stands in its `__init__` loads the whole front.
Of a missing package there is what is needed to import the engine, none of which a measurement calls.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import SimpleNamespace
from typing import dataclass_transform

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "backend/octavo"


@dataclass_transform()
class _Struct:
    """Stands for msgspec.Struct: the engine makes its outputs of it, and nobody here sends them anywhere."""

    def __init_subclass__(cls, **settings: object) -> None:
        dataclass(kw_only=bool(settings.get("kw_only")))(cls)


class _Missing:
    """Stands for a class or an error of a package that is not there."""

    def __init__(self, *arguments: object) -> None:
        raise ImportError("reading a model's files needs a package that is not installed here")


_STAND_INS = {
    "msgspec": {"Struct": _Struct, "DecodeError": ValueError},
    "gguf": {"GGUFReader": _Missing},
    "safetensors": {"safe_open": _Missing, "SafetensorError": OSError},
}


def _enter(name: str, folder: Path) -> None:
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[name] = module_from_spec(spec)


# Whoever has imported the whole of it keeps it.
if "octavo" not in sys.modules:
    _enter("octavo", PACKAGE)
for _name, _contents in _STAND_INS.items():
    if find_spec(_name) is None:
        sys.modules[_name] = SimpleNamespace(**_contents)  # type: ignore[assignment]
sys.path.insert(0, str(REPOSITORY / "tests"))
