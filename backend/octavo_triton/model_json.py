"""Reads a model's `model.json` into an EngineConfig.

Knows the Triton server's folders and instance groups, and of the engine's arguments only those that meet them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo import EngineConfig, ModelLoadError

FILE_NAME = "model.json"
LORA_FILE_NAME = "multi_lora.json"
MODEL_DIRECTORY = "$$TRITON_MODEL_DIRECTORY"
SEVERAL_GPUS = (
    "KIND_GPU is currently for single-GPU models, please specify KIND_MODEL in the model's config.pbtxt for multi-GPU "
    "models"
)


@dataclass(frozen=True, slots=True)
class Instance:
    """Which of a model's instances this is: where its instance group puts it. `kind` is GPU, CPU or MODEL."""

    kind: str = "MODEL"
    device_id: int = -1

    @classmethod
    def from_args(cls, args: Mapping[str, str]) -> Instance:
        """From what the server tells an instance about itself."""
        kind = args.get("model_instance_kind", cls().kind).removeprefix("KIND_")
        return cls(kind, int(args.get("model_instance_device_id") or -1))

    @property
    def device(self) -> str:
        """The engine's device that it asks for; "auto" where the instance group leaves it to the model."""
        if self.kind == "GPU":
            return f"cuda:{self.device_id}" if self.device_id >= 0 else "cuda"
        return "cpu" if self.kind == "CPU" else "auto"


def read_engine_config(model_directory: Path, version: str, instance: Instance = Instance()) -> EngineConfig:
    """The engine arguments of one version of a model, for one of its instances.

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
    arguments = _expand(arguments, str(model_directory.resolve()))
    _check_lora(arguments, folder / LORA_FILE_NAME)
    return EngineConfig.from_mapping(_place(arguments, instance), folder=folder)


def _expand(value: Any, model_directory: str) -> Any:
    if isinstance(value, str):
        return value.replace(MODEL_DIRECTORY, model_directory)
    if isinstance(value, dict):
        return {key: _expand(element, model_directory) for key, element in value.items()}
    if isinstance(value, list):
        return [_expand(element, model_directory) for element in value]
    return value


def _check_lora(arguments: dict[str, Any], file: Path) -> None:
    if str(arguments.get("enable_lora")).lower() == "true" and not file.is_file():
        raise ModelLoadError(f"Triton backend cannot find {file}.")


def _place(arguments: dict[str, Any], instance: Instance) -> dict[str, Any]:
    """The arguments with the device of the instance; one that model.json names must not be another one."""
    num_devices = [str(arguments.get(f"{kind}_parallel_size") or 1) for kind in ("tensor", "pipeline")]
    if instance.kind == "GPU" and num_devices != ["1", "1"]:
        raise ModelLoadError(SEVERAL_GPUS)
    named, placed = str(arguments.get("device") or "auto"), instance.device
    if placed == "auto" or named == placed:
        return arguments
    if named != "auto" and named != placed.partition(":")[0]:
        where = f"KIND_{instance.kind}" + (f", device {instance.device_id}" if instance.device_id >= 0 else "")
        raise ModelLoadError(
            f"'{FILE_NAME}' has device: {named!r}, but the instance group in config.pbtxt is {where}: leave device "
            "out, or use KIND_MODEL"
        )
    return arguments | {"device": placed}
