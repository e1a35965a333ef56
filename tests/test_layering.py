"""Who may import whom. The table is the architecture; README explains it."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import octavo
from octavo import v2

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "backend/octavo"
TRITON_HOST = REPOSITORY / "backend/octavo_triton"
KSERVE_HOST = REPOSITORY / "kserve/octavo_kserve"

BASE = {
    "errors", "parsing", "prompt", "sampling_params", "request", "outputs", "stats", "metrics", "hub_cache",
    "checkpoint", "vllm_arguments", "devices", "config", "structured_outputs", "vocabulary", "pooling",
    "pooling_params", "sentence_files",
}  # fmt: skip

# Module or package of octavo -> what of octavo it may import. A package's name stands for all of its modules.
LAYERS: dict[str, set[str]] = {
    **dict.fromkeys(BASE, BASE),
    "progress": set(),
    "workloads": {"errors"},
    "wire": BASE,
    "core": BASE | {"core"},
    "text": BASE | {"text"},
    "kernels": {"kernels"},
    "quant": {"kernels", "quant"},
    "layers": {"kernels", "layers", "quant"},
    "models": {"checkpoint", "errors", "layers", "models"},
    "runner": BASE | {"core.step", "kernels", "models", "runner"},
    "faults": BASE | {"core.step"},
    "pipeline": {"core.step"},
    "startup_clock": set(),
    "grammar": BASE | {"grammar", "wire"},
    "grammar_gate": BASE | {"core", "grammar"},
    "engine": BASE | {"core", "faults", "grammar_gate", "pipeline", "startup_clock"},
    "testing": BASE | {"core.step", "startup_clock", "testing"},
    "engine_process": BASE | {"wire", "engine"},
    "request_stream": BASE,
    "recorder": BASE,
    "request_times": BASE,
    "front_stats": BASE | {"recorder"},
    "deadlines": set(),
    "inbox": set(),
    "supervisor": BASE | {"wire"},
    "admission": BASE | {"text"},
    "live_request": BASE | {"text", "request_stream", "request_times"},
    "live_table": BASE | {"front_stats", "live_request"},
    "front_loop": BASE | {"deadlines", "inbox", "live_request", "live_table", "supervisor", "wire"},
    "async_engine": BASE | {"text", "admission", "front_loop", "live_request", "live_table", "request_stream"},
    "llm": BASE | {"text", "engine", "admission", "live_request", "progress", "recorder", "request_stream"},
    "bench": BASE | {"engine", "workloads"},
    "cli": BASE | {"llm", "bench", "workloads", "progress"},
    "v2": BASE | {"v2"},
    "": BASE | {"llm", "async_engine", "request_stream", "text"},
}

# Package of others -> where it may be imported. What is not named here may be imported anywhere.
OUTSIDERS: dict[str, tuple[Path, ...]] = {
    "torch": tuple(PACKAGE / name for name in ("kernels", "quant", "layers", "models", "runner")),
    "triton": (PACKAGE / "kernels/language.py",),
    "safetensors": (PACKAGE / "models",),
    "gguf": (PACKAGE / "models", PACKAGE / "checkpoint.py"),
    "tokenizers": (PACKAGE / "text",),
    "jinja2": (PACKAGE / "text",),
    "llguidance": (PACKAGE / "grammar/compiler.py", PACKAGE / "grammar/text_server.py"),
    "msgspec": (
        *(PACKAGE / f"{name}.py" for name in ("outputs", "wire", "supervisor", "front_loop")),
        PACKAGE / "grammar",
    ),
    "rich": (PACKAGE / "progress.py", PACKAGE / "cli.py", PACKAGE / "bench.py"),
    "typer": (PACKAGE / "cli.py",),
    "triton_python_backend_utils": (TRITON_HOST,),
    "octavo_triton": (TRITON_HOST,),
    "kserve": (KSERVE_HOST,),
    "octavo_kserve": (KSERVE_HOST,),
    # Model code of others belongs to tests and benchmarks.
    "transformers": (),
}

# The only places that import by name: a model class, a scheme's, an executor's factory, a look for the embedded model,
# and what a command needs of the device side.
IMPORT_BY_NAME = {
    PACKAGE / name for name in ("models/registry.py", "quant/__init__.py", "engine.py", "checkpoint.py", "cli.py")
}

# The only place where an import may be guarded: what it imports exists where there is a GPU.
GUARDED = PACKAGE / "kernels/language.py"

SOURCES = sorted([*(REPOSITORY / "backend").rglob("*.py"), *(REPOSITORY / "kserve").rglob("*.py")])
OURS = [path for path in SOURCES if path.is_relative_to(PACKAGE)]
HOSTS = [path for path in SOURCES if not path.is_relative_to(PACKAGE)]


def _name(path: Path) -> str:
    """The module's name below octavo: "core.step"; a package is its `__init__`, and octavo itself is ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path) for path in OURS}


def imported(tree: ast.AST) -> set[str]:
    """Full names of what a module imports: `from a import b` gives "a.b"."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def own_modules(tree: ast.AST) -> set[str]:
    """Modules of octavo that a module imports, named as `_name` does; "" is the package itself."""
    found = set()
    for name in imported(tree):
        top, _, rest = name.partition(".")
        if top == "octavo":
            found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found


def layer_of(module: str) -> str:
    """The row of LAYERS that a module falls under: its own or its package's."""
    return module if module in LAYERS else module.partition(".")[0]


def wrong_imports(module: str, tree: ast.AST) -> set[str]:
    """What `module` imports of octavo although its row of the table does not allow it."""
    allowed = LAYERS[layer_of(module)]
    return {name for name in own_modules(tree) if name not in allowed and name.partition(".")[0] not in allowed}


def misplaced(tree: ast.Module) -> list[str]:
    """Imports that do not stand at the top level of the module, and relative ones."""
    wrong = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            relative = isinstance(node, ast.ImportFrom) and node.level > 0
            if relative or node not in tree.body:
                wrong.append(ast.unparse(node))
    return wrong


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", OURS, ids=_name)
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    assert not wrong_imports(_name(path), _parse(path))


def test_every_row_of_the_table_is_a_module() -> None:
    packages = {name.partition(".")[0] for name in MODULES}
    assert LAYERS.keys() - {""} == packages - {""}
    assert set().union(*LAYERS.values()) - {"core.step"} <= packages


def test_no_allowance_of_the_table_is_unused() -> None:
    used: dict[str, set[str]] = {layer: set() for layer in LAYERS}
    for path in OURS:
        used[layer_of(_name(path))] |= own_modules(_parse(path))
    for layer, allowed in LAYERS.items():
        tops = used[layer] | {name.partition(".")[0] for name in used[layer]}
        assert allowed - BASE - {layer} <= tops, layer


def test_no_two_modules_import_each_other() -> None:
    graph = {_name(path): own_modules(_parse(path)) - {_name(path)} for path in OURS}
    assert list(TopologicalSorter(graph).static_order())[-1] in MODULES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_packages_of_others_stay_where_they_belong(path: Path) -> None:
    for name in imported(_parse(path)):
        homes = OUTSIDERS.get(name.partition(".")[0])
        assert homes is None or any(path.is_relative_to(home) for home in homes), name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_imports_are_absolute_and_at_the_top(path: Path) -> None:
    tree = _parse(path)
    assert path == GUARDED or not misplaced(tree)
    text = path.read_text(encoding="utf-8")
    assert "TYPE_CHECKING" not in text
    assert "__import__" not in text
    by_name = {name for name in imported(tree) if name.partition(".")[0] == "importlib"}
    assert path in IMPORT_BY_NAME or by_name <= {"importlib.metadata"}


@pytest.mark.parametrize("path", HOSTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_a_host_uses_only_public_names(path: Path) -> None:
    tree = _parse(path)
    public = {f"octavo.{name}" for name in octavo.__all__} | {f"octavo.v2.{name}" for name in v2.__all__}
    used = {name for name in imported(tree) if name.partition(".")[0] == "octavo"} - {"octavo"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "octavo":
            used.add(f"octavo.{node.attr}")
    assert used <= public


def test_no_folder_shadows_a_package_of_others() -> None:
    below = [path for folder in ("tests", "integration") for path in (REPOSITORY / folder).rglob("__init__.py")]
    assert not below
    assert not (REPOSITORY / "kserve/__init__.py").exists()
    stems = {path.stem for folder in ("tests", "integration") for path in (REPOSITORY / folder).rglob("*")}
    assert not stems & {"kserve", "triton", "torch"}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kernels.linear", "from octavo.errors import InvalidRequest"),
        ("core.scheduler", "import octavo.engine"),
        ("core.scheduler", "from octavo import engine"),
        ("runner.sampler", "from octavo.core.scheduler import Scheduler"),
        ("engine", "from octavo import runner"),
        ("config", "import octavo"),
        ("config", "from octavo import SamplingParams"),
    ],
)
def test_the_check_sees_a_wrong_import(module: str, line: str) -> None:
    assert wrong_imports(module, ast.parse(line))


@pytest.mark.parametrize("line", ["from . import config", "def f():\n    import json", "if x:\n    import json"])
def test_the_check_sees_a_misplaced_import(line: str) -> None:
    assert misplaced(ast.parse(line))


_IMPORT = """
import sys, time
start = time.perf_counter()
import octavo
print(time.perf_counter() - start, *({"torch", "transformers", "triton", "numba"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_importing_octavo_is_fast_and_loads_no_torch() -> None:
    times = []
    for _ in range(3):
        out = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True).stdout
        seconds, *loaded = out.split()
        assert not loaded
        times.append(float(seconds))
    assert min(times) < 1.5
