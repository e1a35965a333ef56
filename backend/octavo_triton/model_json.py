"""Reads a model's `model.json` into an EngineConfig. Knows the Triton server's folders, no engine argument by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from octavo import EngineConfig, ModelLoadError

FILE_NAME = "model.json"
MODEL_DIRECTORY = "$$TRITON_MODEL_DIRECTORY"


def read_engine_config(model_directory: Path, version: str) -> EngineConfig:
    """The engine arguments of one version of a model.

    `$$TRITON_MODEL_DIRECTORY` stands for the model's folder, which holds the version folders; a relative path is
    relative to the version folder. Raises ModelLoadError that names the file, the key or the value at fault.
    """
    folder = model_directory.resolve() / version
    try:
        arguments = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"'{FILE_NAME}' containing octavo engine args must be provided in '{folder}'") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"'{folder / FILE_NAME}' is not a JSON file: {error}") from None
    if not isinstance(arguments, dict):
        raise ModelLoadError(f"'{folder / FILE_NAME}' must hold a JSON object of engine arguments")
    return EngineConfig.from_mapping(_expand(arguments, str(model_directory.resolve())), folder=folder)


def _expand(value: Any, model_directory: str) -> Any:
    if isinstance(value, str):
        return value.replace(MODEL_DIRECTORY, model_directory)
    if isinstance(value, dict):
        return {key: _expand(element, model_directory) for key, element in value.items()}
    if isinstance(value, list):
        return [_expand(element, model_directory) for element in value]
    return value
