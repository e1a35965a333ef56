"""How large things may grow. Whoever meets a limit splits; nobody raises it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
KERNELS = REPOSITORY / "backend/octavo/kernels"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FUNCTION_LINES_P90 = 30
MAX_PARAMETERS = 6
MAX_ATTRIBUTES = 15
MAX_DOCSTRING_LINES = 5
FORBIDDEN_NAMES = {"utils", "helpers", "common"}

CODE = [REPOSITORY / "backend", REPOSITORY / "kserve"]
TESTS = [REPOSITORY / "tests", REPOSITORY / "integration"]

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _files(folders: list[Path], *suffixes: str) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes)


FILES = _files([*CODE, *TESTS], ".py", ".c")
MODULES = _files(CODE, ".py")


def _id(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.AST) -> Iterator[Function]:
    """All functions and methods, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def num_lines(function: Function) -> int:
    """Lines from `def` to the end, the docstring included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def num_parameters(function: Function) -> int:
    """Parameters of every kind, `*args` and `**kwargs` too, without self and cls."""
    spec = function.args
    named = [arg.arg for arg in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    return len(named) - bool(named and named[0] in {"self", "cls"}) + bool(spec.vararg) + bool(spec.kwarg)


def is_kernel(function: Function) -> bool:
    """A function of the Triton language: a launch passes pointers and numbers one by one, there are no objects."""
    return any(ast.unparse(decorator).partition("(")[0] == "jit" for decorator in function.decorator_list)


def is_record(cls: ast.ClassDef) -> bool:
    """A frozen dataclass: nothing can change in it, its methods only derive. Such a table of settings may be long."""
    return any(
        ast.unparse(decorator).startswith("dataclass(") and "frozen=True" in ast.unparse(decorator)
        for decorator in cls.decorator_list
    )


def attributes(cls: ast.ClassDef) -> set[str]:
    """State of an object: annotated names of the class body, `__slots__`' aside, and what is assigned on self."""
    fields = {n.target.id for n in cls.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    stored = {
        node.attr
        for node in ast.walk(cls)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }
    return (fields | stored) - {"__slots__"}


def num_text_lines(docstring: str) -> int:
    """Lines of prose; indented lines are a drawing or an example."""
    return sum(bool(line.strip()) and not line.startswith(" ") for line in docstring.splitlines())


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=_id)
def test_modules_are_named_after_what_they_hold(path: Path) -> None:
    assert path.stem.lstrip("_") not in FORBIDDEN_NAMES
    assert path.parent.name not in FORBIDDEN_NAMES


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_functions_are_short_and_take_few_parameters(path: Path) -> None:
    for function in functions(_parse(path)):
        assert path.is_relative_to(KERNELS) or num_lines(function) <= MAX_FUNCTION_LINES, function.name
        assert is_kernel(function) or num_parameters(function) <= MAX_PARAMETERS, function.name


def test_nearly_all_functions_fit_half_a_screen() -> None:
    lengths = sorted(num_lines(function) for path in MODULES for function in functions(_parse(path)))
    assert lengths[len(lengths) * 9 // 10] <= MAX_FUNCTION_LINES_P90


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_classes_hold_little_state(path: Path) -> None:
    for node in ast.walk(_parse(path)):
        if isinstance(node, ast.ClassDef) and not is_record(node):
            assert len(attributes(node)) <= MAX_ATTRIBUTES, node.name


@pytest.mark.parametrize("path", MODULES, ids=_id)
def test_a_module_says_in_a_few_lines_what_it_does(path: Path) -> None:
    docstring = ast.get_docstring(_parse(path)) or ""
    assert 1 <= num_text_lines(docstring) <= MAX_DOCSTRING_LINES


def test_every_way_to_take_a_parameter_counts() -> None:
    method = next(functions(ast.parse("def f(self, a, /, b, *c, d=1, **e): pass")))
    assert num_parameters(method) == 5


def test_a_decorated_function_is_as_long_as_its_own_lines() -> None:
    assert num_lines(next(functions(ast.parse("@cache\ndef f():\n    a = 1\n    return a")))) == 3


def test_state_is_what_is_annotated_or_assigned_on_self() -> None:
    source = (
        "@dataclass(slots=True)\nclass A:\n    a: int\n    def f(self): self.b, self.c = 1, 2; self.d += 1; x.e = 1"
    )
    cls = ast.parse(source).body[0]
    assert isinstance(cls, ast.ClassDef)
    assert attributes(cls) == {"a", "b", "c", "d"}
    assert not is_record(cls)
