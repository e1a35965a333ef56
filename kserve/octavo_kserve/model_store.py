"""ModelStore: a folder whose entries may be loaded by name while the server runs. Knows no engine and no request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import octavo
from octavo_kserve.options import ModelOptions

# One step of a path, never ".." nor hidden.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class ModelStore:
    """Each folder or GGUF file in `folder` is a model of that name; `arguments` are the engine arguments of all."""

    def __init__(self, folder: Path, arguments: Mapping[str, Any]) -> None:
        """Raises InvalidRequest unless `folder` is one."""
        if not folder.is_dir():
            raise octavo.InvalidRequest("model_store", str(folder), "a folder of models")
        self._folder = folder
        self._arguments = arguments

    def names(self) -> list[str]:
        """What is there now."""
        return sorted(path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name) and _is_model(path))

    def find(self, name: str) -> ModelOptions | None:
        """The model of this name. Raises InvalidRequest for an engine argument that it cannot have."""
        if not _NAME.fullmatch(name) or not _is_model(self._folder / name):
            return None
        arguments = {**self._arguments, "model": str(self._folder.absolute() / name)}
        return ModelOptions(name, (), octavo.EngineConfig.from_mapping(arguments, folder=self._folder))


def _is_model(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".gguf"
