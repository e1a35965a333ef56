"""BERT: the shared encoder as it is, and as a cross-encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.checkpoint import ENCODER_CONTEXT, first_position
from octavo.errors import ModelLoadError, shorten
from octavo.layers.attention import MAX_HEAD_DIM
from octavo.models.config import ConfigReader
from octavo.models.encoder import Encoder, EncoderSpec

# What else these keys may say, the encoder does not do.
_KNOWN = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


class BertModel(Encoder):
    """Vectors."""

    @classmethod
    def read_spec(cls, config: Mapping[str, Any]) -> EncoderSpec:
        """The spec of a config.json of this family; raises ModelLoadError."""
        return read_spec(config)


class BertForSequenceClassification(Encoder):
    """Scores of pairs of texts."""

    @classmethod
    def read_spec(cls, config: Mapping[str, Any]) -> EncoderSpec:
        """Raises ModelLoadError, also for one with more than a score."""
        return replace(read_spec(config), **with_score(config, "bert.", "bert.pooler.dense", "classifier"))


def read_spec(config: Mapping[str, Any]) -> EncoderSpec:
    """The spec of a BERT-like config, without a head."""
    read = ConfigReader(config)
    for key, known in _KNOWN.items():
        if config.get(key, known) != known:
            raise ModelLoadError(f"config.json: {key} {shorten(config[key])} is not supported; known are {known}")
    hidden_size, num_heads = read.count("hidden_size"), read.count("num_attention_heads")
    head_dim = hidden_size // num_heads
    if hidden_size % num_heads or head_dim % 8 or head_dim > MAX_HEAD_DIM:
        raise ModelLoadError(
            f"config.json: hidden_size {hidden_size} for {num_heads} heads is not supported; expected a multiple "
            f"of 8 a head, up to {MAX_HEAD_DIM}"
        )
    return EncoderSpec(
        hidden_size=hidden_size,
        intermediate_size=read.count("intermediate_size"),
        num_layers=read.count("num_hidden_layers"),
        num_heads=num_heads,
        vocab_size=read.count("vocab_size"),
        num_token_types=read.count("type_vocab_size", 2),
        num_positions=read.count("max_position_embeddings", ENCODER_CONTEXT),
        first_position=first_position(config),
        layer_norm_eps=float(read.number("layer_norm_eps", 1e-12)),
    )


def with_score(config: Mapping[str, Any], prefix: str, dense: str, output: str) -> dict[str, Any]:
    """The spec's fields of a model that ends in a score, by the names of its tensors."""
    labels = config.get("id2label")
    # Without any, transformers makes two.
    num_labels = len(labels) if isinstance(labels, Mapping) else config.get("num_labels", 2)
    if num_labels != 1:
        raise ModelLoadError(
            f"config.json: {shorten(num_labels)} labels (id2label) are not supported; expected one, which is the score"
        )
    return {"prefix": prefix, "head": (dense, output)}
