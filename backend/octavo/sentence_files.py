"""The files of Sentence Transformers in a model's folder: modules.json, what it names, and what is done to texts.

Whatever in them would change a vector or a score and is not supported is refused by name. Knows no tensor and no token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octavo.checkpoint import Checkpoint, read_json
from octavo.errors import ModelLoadError, shorten

MODULES = "modules.json"
_GENERAL = "config_sentence_transformers.json"
# One of them is there; the others are older models' own.
_TRANSFORMER = tuple(f"sentence_{name}_config.json" for name in ("bert", "roberta", "xlm-roberta"))
# Each changes what comes out of the first module, unless it is empty.
_NOT_SUPPORTED = ("processing_kwargs", "query_length", "document_length", "query_expansion")
_TASKS = ("feature-extraction", "sequence-classification")


@dataclass(frozen=True, slots=True)
class TextSettings:
    """What is put before a text that the model reads, one of `prompts`, and how long it may be.

    `default_prompt` is the one that nobody need ask for. `max_seq_length`: tokens of the longest text, None where the
    folder does not say.
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    max_seq_length: int | None = None


def read_text_settings(checkpoint: Checkpoint) -> TextSettings:
    """Of a folder without such files: nothing is done. Raises ModelLoadError that names the file and the key."""
    prompts, default = _read_prompts(checkpoint.path / _GENERAL)
    file, settings = _read_transformer(checkpoint)
    for key in _NOT_SUPPORTED:
        if settings.get(key):
            raise ModelLoadError(f"{file}: {key} {shorten(settings[key])} is not supported")
    task = settings.get("transformer_task", _TASKS[checkpoint.is_cross_encoder])
    if task != _TASKS[checkpoint.is_cross_encoder]:
        raise ModelLoadError(f"{file}: transformer_task {shorten(task)} is not that of the model's architecture")
    modes = settings.get("modality_config")
    if isinstance(modes, Mapping) and "text" not in modes:
        raise ModelLoadError(f"{file}: modality_config {shorten(list(modes))} is not supported; expected 'text' in it")
    length = settings.get("max_seq_length")
    if length is not None and (type(length) is not int or length < 1):
        raise ModelLoadError(f"{file}: max_seq_length is {shorten(length)}; expected a whole number of tokens")
    return TextSettings(prompts, default, length)


def reads_lower_case(checkpoint: Checkpoint) -> bool:
    """Whether texts lose their capitals before they become tokens, whatever the tokenizer does."""
    file, settings = _read_transformer(checkpoint)
    value = settings.get("do_lower_case") or False
    if not isinstance(value, bool):
        raise ModelLoadError(f"{file}: do_lower_case is {shorten(value)}; expected true or false")
    return value


def _read_transformer(checkpoint: Checkpoint) -> tuple[Path, dict[str, Any]]:
    """The settings of the first module, with the file that has them; none where no such file is."""
    files = [checkpoint.path / name for name in _TRANSFORMER]
    file = next((file for file in files if file.is_file()), None)
    return (files[0], {}) if file is None else (file, read_json(file))


def _read_prompts(file: Path) -> tuple[dict[str, str], str]:
    settings = read_json(file) if file.is_file() else {}
    prompts = settings.get("prompts") or {}
    texts = prompts.values() if isinstance(prompts, Mapping) else [0]
    if not all(isinstance(text, str | None) for text in texts):
        raise ModelLoadError(f"{file}: prompts is {shorten(prompts)}; expected texts by their names")
    prompts = {name: text or "" for name, text in prompts.items()}
    default = settings.get("default_prompt_name")
    if default is not None and not (isinstance(default, str) and default in prompts):
        raise ModelLoadError(f"{file}: default_prompt_name {shorten(default)} is not among the prompts {list(prompts)}")
    return prompts, "" if default is None else prompts[default]


def read_modules(checkpoint: Checkpoint, known: tuple[str, ...]) -> dict[str, Path] | None:
    """The folder of each module, by the last part of its type; None where there is no modules.json.

    Raises ModelLoadError for one that is not `known`.
    """
    file = checkpoint.path / MODULES
    if not file.is_file():
        return None
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
        found = [(_module_name(str(module["type"])), str(module.get("path", ""))) for module in modules]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found = []
    if not found:
        raise ModelLoadError(f"{file} is not a list of modules, each with a type")
    for name, _ in found:
        if name not in known:
            raise ModelLoadError(f"{file}: module {shorten(name)} is not supported; known are {', '.join(known)}")
    names = [name for name, _ in found]
    if names != [name for name in known if name in names]:
        raise ModelLoadError(f"{file}: modules {', '.join(names)} are not supported; expected {', '.join(known)}")
    return {name: checkpoint.path / path for name, path in found}


def _module_name(kind: str) -> str:
    """The last part of its type; all of it where the code lies in the folder."""
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def read_activation(checkpoint: Checkpoint) -> str | None:
    """What is made of a cross-encoder's number, as the name of a class; None where the folder does not say.

    The general file counts more than config.json's entry, and that more than older models' own.
    """
    file = checkpoint.path / _GENERAL
    in_config: Any = checkpoint.config.get("sentence_transformers")
    for settings, key in (
        (read_json(file) if file.is_file() else {}, "activation_fn"),
        (in_config if isinstance(in_config, Mapping) else {}, "activation_fn"),
        (checkpoint.config, "sbert_ce_default_activation_function"),
    ):
        if settings.get(key) is not None:
            return str(settings[key])
    return None
