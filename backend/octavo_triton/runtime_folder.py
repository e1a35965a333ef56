"""What one run of the server reads: a folder of backends and model repositories, assembled out of links.

Knows the server's folder layout and one line of config.pbtxt; nothing of processes, engines or requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

BACKEND = "octavo"
CONFIG = "config.pbtxt"
SHIM_FOLDER = Path(__file__).resolve().parent / "backend"
# The field may stand anywhere on a line, in either kind of quotes; nothing else in a config has this name.
_ANY_TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}
_OUR_BACKEND = re.compile(rf"""\bbackend\s*:\s*(["']){BACKEND}\1""")


class RepositoryError(Exception):
    """A model repository or a backend's name that cannot be served; one line of text."""


def assemble_backends(server_root: Path, folder: Path, name: str = BACKEND) -> Path:
    """A backend folder with the server's own backends and ours side by side; ours also answers to `name`."""
    own = server_root / "backends"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or any((own / name).glob("libtriton_*.so")):
        raise RepositoryError(
            f"backend name: '{name}' is not allowed; expected letters, digits, _ and -, "
            "and no name of a backend that the server brings (vllm is the useful one)"
        )
    backends = folder / "backends"
    backends.mkdir()
    for backend in own.iterdir():
        if backend.name not in {BACKEND, name}:
            (backends / backend.name).symlink_to(backend)
    for ours in {BACKEND, name}:
        (backends / ours).symlink_to(SHIM_FOLDER)
    return backends


def assemble_repositories(repositories: Iterable[Path], folder: Path, name: str = BACKEND) -> list[Path]:
    """The repositories to serve: as they are, or where a model names our backend, as a copy that says `name`.

    A copy holds links to everything but config.pbtxt, so paths below a version folder or the model's folder lead to
    the same files; one that leaves the model's folder by ".." must be absolute. Models and versions that are added to
    the original later are not seen.
    """
    served = []
    for number, repository in enumerate(repositories):
        if not repository.is_dir():
            raise RepositoryError(f"no such model repository: {repository}")
        repository = repository.resolve()
        if name != BACKEND and any(_names_our_backend(model) for model in repository.iterdir()):
            repository = _renamed_copy(repository, folder / "models" / str(number), name)
        served.append(repository)
    return served


def _names_our_backend(model: Path) -> bool:
    config = model / CONFIG
    return config.is_file() and _OUR_BACKEND.search(config.read_text(**_ANY_TEXT)) is not None


def _renamed_copy(repository: Path, copy: Path, name: str) -> Path:
    copy.mkdir(parents=True)
    for model in repository.iterdir():
        if not _names_our_backend(model):
            (copy / model.name).symlink_to(model)
            continue
        (copy / model.name).mkdir()
        for entry in model.iterdir():
            if entry.name != CONFIG:
                (copy / model.name / entry.name).symlink_to(entry)
        config = (model / CONFIG).read_text(**_ANY_TEXT)
        (copy / model.name / CONFIG).write_text(_OUR_BACKEND.sub(f'backend: "{name}"', config), **_ANY_TEXT)
    return copy
