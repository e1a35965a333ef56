"""Pooling: how one vector is made of a prompt's hidden states, and what a checkpoint's own files say of it.

The files are those of Sentence Transformers (modules.json and what it names); no tensor is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from octavo.checkpoint import Checkpoint, read_json
from octavo.errors import InvalidRequest, ModelLoadError, shorten


class PoolingKind(StrEnum):
    """Which hidden states make the vector: the mean of all, the first token's, or the last token's."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class Pooling:
    """The vector is the first `dimensions` numbers (None: all) of what `kind` says, `normalize`d to length 1 or not."""

    kind: PoolingKind
    normalize: bool
    dimensions: int | None = None


_MODULES = ("Transformer", "Pooling", "Normalize")
# The switches in a Pooling module's config.json, of which one is on.
_MODES = {
    "pooling_mode_mean_tokens": PoolingKind.MEAN,
    "pooling_mode_cls_token": PoolingKind.CLS,
    "pooling_mode_lasttoken": PoolingKind.LAST,
}


def is_made_for_vectors(checkpoint: Checkpoint) -> bool:
    """Whether vectors are what the model is for, so that nobody need ask for them."""
    return not checkpoint.has_head or (checkpoint.path / "modules.json").is_file()


def read_pooling(checkpoint: Checkpoint) -> Pooling:
    """What modules.json says; without one the mean for an encoder, the last token for a decoder, of length 1.

    Raises ModelLoadError for modules that would change the vectors and are not supported, and for dimensions that are
    none.
    """
    _check_listed(checkpoint)
    kind = PoolingKind.MEAN if checkpoint.is_encoder else PoolingKind.LAST
    file = checkpoint.path / "modules.json"
    if not file.is_file():
        return Pooling(kind, normalize=True)
    modules = _read_modules(file)
    for name, path in modules:
        if name not in _MODULES:
            raise ModelLoadError(f"{file}: module {shorten(name)} is not supported; known are {', '.join(_MODULES)}")
        if name == "Pooling":
            kind = _read_kind(checkpoint.path / path / "config.json")
    if not checkpoint.is_encoder and kind is not PoolingKind.LAST:
        # A decoder's prompt is computed in chunks, of which only the last is at hand in the end.
        raise ModelLoadError(f"{file}: pooling {kind.value!r} is not supported for a decoder; expected its last token")
    return Pooling(kind, normalize=any(name == "Normalize" for name, _ in modules))


def read_max_seq_length(checkpoint: Checkpoint) -> int | None:
    """The longest prompt that the vectors were made for, in tokens, where sentence_bert_config.json says so."""
    file = checkpoint.path / "sentence_bert_config.json"
    length = read_json(file).get("max_seq_length") if file.is_file() else None
    if length is not None and (type(length) is not int or length < 1):
        raise ModelLoadError(f"{file}: max_seq_length is {shorten(length)}; expected a whole number of tokens")
    return length


def check_dimensions(checkpoint: Checkpoint, asked: int) -> None:
    """Raises InvalidRequest for a length that the model was not trained for: cut there, its vectors say little.

    Kusupati et al. 2022, arXiv 2205.13147. config.json says `is_matryoshka`, or lists `matryoshka_dimensions`.
    """
    size, listed = checkpoint.config.get("hidden_size"), checkpoint.config.get("matryoshka_dimensions")
    if listed:
        allowed, said = {size, *listed}, f"one of {', '.join(map(str, sorted(listed)))}"
    elif checkpoint.config.get("is_matryoshka") and isinstance(size, int):
        allowed, said = set(range(1, size + 1)), f"at most {size}"
    else:
        allowed, said = {size}, f"null or {size}: the model has no shorter vectors"
    if asked not in allowed:
        raise InvalidRequest("dimensions", asked, said)


def _check_listed(checkpoint: Checkpoint) -> None:
    listed = checkpoint.config.get("matryoshka_dimensions")
    is_list = isinstance(listed, list) and all(type(length) is int and length > 0 for length in listed)
    if listed is not None and not is_list:
        raise ModelLoadError(
            f"config.json: matryoshka_dimensions is {shorten(listed)}; expected a list of whole numbers above 0"
        )


def _read_modules(file: Path) -> list[tuple[str, str]]:
    """(name, folder) of each module; its name is the last part of its type."""
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
        found = [(str(module["type"]).rpartition(".")[2], str(module.get("path", ""))) for module in modules]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found = []
    if not found:
        raise ModelLoadError(f"{file} is not a list of modules, each with a type")
    return found


def _read_kind(file: Path) -> PoolingKind:
    config = read_json(file)
    on = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(on) != 1 or on[0] not in _MODES:
        raise ModelLoadError(f"{file}: {shorten(on)} is not supported; expected one of {', '.join(_MODES)}")
    return _MODES[on[0]]
