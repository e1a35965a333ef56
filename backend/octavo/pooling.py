"""Pooling: how a vector, or a score, is made of a prompt's hidden states, and what a checkpoint's files say of it.

Reads no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from octavo.checkpoint import Checkpoint, read_json
from octavo.errors import InvalidRequest, ModelLoadError, shorten
from octavo.sentence_files import MODULES, read_activation, read_modules, read_text_settings


class PoolingKind(StrEnum):
    """Which hidden states make the vector: the mean of all, the first token's, or the last token's.

    Of a cross-encoder: its head's number as it is (the logit), or between 0 and 1 (the sigmoid of that).
    """

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"
    LOGIT = "logit"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class Pooling:
    """The vector is the first `dimensions` numbers (None: all) of what `kind` says, `normalize`d to length 1 or not.

    A score is a vector of one number.
    """

    kind: PoolingKind
    normalize: bool
    dimensions: int | None = None


_MODULES = ("Transformer", "Pooling", "Normalize")
# What a Pooling module's config.json may say: as `pooling_mode`, or by older files' switches, of which one is on.
_MODES = {
    "mean": PoolingKind.MEAN,
    "cls": PoolingKind.CLS,
    "lasttoken": PoolingKind.LAST,
    "pooling_mode_mean_tokens": PoolingKind.MEAN,
    "pooling_mode_cls_token": PoolingKind.CLS,
    "pooling_mode_lasttoken": PoolingKind.LAST,
}
# A GGUF file's numbers for the same; 4 is a score's.
_GGUF_KINDS = {1: PoolingKind.MEAN, 2: PoolingKind.CLS, 3: PoolingKind.LAST}
# The last parts of torch's names; other packages' code is never run.
_ACTIVATIONS = {"Sigmoid": PoolingKind.SIGMOID, "Identity": PoolingKind.LOGIT}


def is_made_for_vectors(checkpoint: Checkpoint) -> bool:
    """Whether vectors or scores are what the model is for, so that nobody need ask for them."""
    says_so = checkpoint.gguf_pooling_type > 0 or (checkpoint.path / MODULES).is_file()
    return not checkpoint.has_head or says_so


def read_pooling(checkpoint: Checkpoint) -> Pooling:
    """What modules.json or the GGUF file says; else the mean of an encoder, the last token of a decoder, of length 1.

    Raises ModelLoadError for whatever would change the vectors and is not supported, and for dimensions that are none.
    """
    _check_listed(checkpoint)
    if checkpoint.is_cross_encoder:
        return _read_scoring(checkpoint)
    kind = PoolingKind.MEAN if checkpoint.is_encoder else PoolingKind.LAST
    where, number = checkpoint.path, checkpoint.gguf_pooling_type
    modules = read_modules(checkpoint, _MODULES)
    if number > 0:
        if number not in _GGUF_KINDS:
            raise ModelLoadError(f"{where}: pooling_type {number} is not supported; known are {_numbered()}")
        kind = _GGUF_KINDS[number]
    if modules is not None:
        where = checkpoint.path / MODULES
        if "Pooling" not in modules:
            raise ModelLoadError(f"{where}: there is no module Pooling, which makes one vector of all tokens'")
        kind = _read_kind(modules["Pooling"] / "config.json", any(read_text_settings(checkpoint).prompts.values()))
    elif checkpoint.is_masked_lm:
        # Such a model's vectors may as well be sparse, of its last layer: nothing says that they are not.
        raise ModelLoadError(f"{where} has no {MODULES}, which would say how {checkpoint.architecture} makes vectors")
    if not checkpoint.is_encoder and kind is not PoolingKind.LAST:
        # A decoder's prompt is computed in chunks, of which only the last is at hand in the end.
        raise ModelLoadError(f"{where}: pooling {kind.value!r} is not supported for a decoder; expected its last token")
    return Pooling(kind, normalize=modules is None or "Normalize" in modules)


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


def _numbered() -> str:
    return ", ".join(f"{number} ({kind.value})" for number, kind in _GGUF_KINDS.items())


def _read_kind(file: Path, has_prompt: bool) -> PoolingKind:
    config = read_json(file)
    modes = config.get("pooling_mode")
    if modes is None:
        on = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
        modes = on or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or str(modes[0]) not in _MODES:
        known = ", ".join(_MODES)
        raise ModelLoadError(f"{file}: pooling_mode {shorten(modes)} is not supported; expected one of {known}")
    kind = _MODES[modes[0]]
    if has_prompt and kind is PoolingKind.MEAN and config.get("include_prompt") is False:
        raise ModelLoadError(f"{file}: include_prompt false is not supported: a prompt counts like the text behind it")
    return kind


def _read_scoring(checkpoint: Checkpoint) -> Pooling:
    """Of a cross-encoder: the sigmoid, where its files do not say anything else."""
    read_modules(checkpoint, ("Transformer",))
    activation = read_activation(checkpoint) or "torch.nn.Sigmoid"
    kind = _ACTIVATIONS.get(activation.rpartition(".")[2]) if activation.startswith("torch.") else None
    if kind is None:
        known = ", ".join(_ACTIVATIONS)
        raise ModelLoadError(
            f"{checkpoint.path}: activation_fn {shorten(activation)} is not supported; known are {known}"
        )
    return Pooling(kind, normalize=False)
