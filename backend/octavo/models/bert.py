"""BERT: an encoder, whose tokens see each other in both directions. It gives hidden states, and no logits.

Devlin et al. 2018, arXiv 1810.04805. Keys and values go through the paged cache like a decoder's, for one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.checkpoint import ENCODER_CONTEXT
from octavo.errors import ModelLoadError, shorten
from octavo.layers.attention import MAX_HEAD_DIM, Attention, AttentionMetadata, AttentionSpec, WriteForm
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.layers.mlp import MLP
from octavo.layers.norm import LayerNorm
from octavo.models.config import NOT_QUANTISED, ConfigReader, Quantisation
from octavo.models.weights import WeightSource


@dataclass(frozen=True, slots=True)
class BertSpec:
    """The shape of a BERT. `quantisation` is not the config's: whoever loads the model decides."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    num_token_types: int
    max_position_embeddings: int
    layer_norm_eps: float
    quantisation: Quantisation = NOT_QUANTISED

    @property
    def num_kv_heads(self) -> int:
        """Every head has keys and values of its own."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Numbers of a head."""
        return self.hidden_size // self.num_heads

    @property
    def unused_tensors(self) -> tuple[str, ...]:
        """The pooler is of another task's training; position ids count from 0."""
        return "pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"


@dataclass(frozen=True, slots=True)
class BertLayer:
    """One block: attention, then an MLP, each with the norm of the sum behind it."""

    attention: Attention
    attention_norm: LayerNorm
    mlp: MLP
    mlp_norm: LayerNorm


class BertModel:
    """The encoder without a head. Owns its weights."""

    def __init__(self, spec: BertSpec, weights: WeightSource) -> None:
        self.spec = spec
        prefix = "embeddings."
        self.words = Embedding(weights.take(f"{prefix}word_embeddings.weight", spec.vocab_size, spec.hidden_size))
        positions = weights.take(f"{prefix}position_embeddings.weight", spec.max_position_embeddings, spec.hidden_size)
        types = weights.take(f"{prefix}token_type_embeddings.weight", spec.num_token_types, spec.hidden_size)
        # A prompt is one segment: all its tokens are of type 0.
        self.positions = Embedding(positions + types[0])
        self.norm = _norm(spec, f"{prefix}LayerNorm", weights)
        unrotated = torch.zeros(spec.max_position_embeddings, 2, spec.head_dim // 2, device=positions.device)
        unrotated[:, 0] = 1.0
        self.layers = [_build_layer(spec, index, weights, unrotated) for index in range(spec.num_layers)]

    @classmethod
    def read_spec(cls, config: Mapping[str, Any]) -> BertSpec:
        """The spec of a config.json of this family; raises ModelLoadError."""
        read = ConfigReader(config)
        for key, known in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if config.get(key, known) != known:
                raise ModelLoadError(f"config.json: {key} {shorten(config[key])} is not supported; known are {known}")
        hidden_size, num_heads = read.count("hidden_size"), read.count("num_attention_heads")
        head_dim = hidden_size // num_heads
        if hidden_size % num_heads or head_dim % 8 or head_dim > MAX_HEAD_DIM:
            raise ModelLoadError(
                f"config.json: hidden_size {hidden_size} for {num_heads} heads is not supported; expected a multiple "
                f"of 8 a head, up to {MAX_HEAD_DIM}"
            )
        return BertSpec(
            hidden_size=hidden_size,
            intermediate_size=read.count("intermediate_size"),
            num_layers=read.count("num_hidden_layers"),
            num_heads=num_heads,
            vocab_size=read.count("vocab_size"),
            num_token_types=read.count("type_vocab_size", 2),
            max_position_embeddings=read.count("max_position_embeddings", ENCODER_CONTEXT),
            layer_norm_eps=float(read.number("layer_norm_eps", 1e-12)),
        )

    def __call__(
        self, token_ids: Tensor, positions: Tensor, kv_caches: Sequence[Tensor], metadata: AttentionMetadata
    ) -> Tensor:
        """Whole prompts. token_ids, positions: int64 [T]; kv_caches: one a layer, written in place.

        Returns the last layer's hidden states [T, hidden_size].
        """
        x = self.norm(self.words(token_ids), self.positions(positions))
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            x = layer.attention_norm(layer.attention(x, positions, kv_cache, metadata), x)
            x = layer.mlp_norm(layer.mlp(x), x)
        return x


def _norm(spec: BertSpec, name: str, weights: WeightSource) -> LayerNorm:
    weight, bias = (weights.take(f"{name}.{part}", spec.hidden_size) for part in ("weight", "bias"))
    return LayerNorm(weight, bias, spec.layer_norm_eps)


def _build_layer(spec: BertSpec, index: int, weights: WeightSource, unrotated: Tensor) -> BertLayer:
    prefix = f"encoder.layer.{index}."

    def linear(names: Sequence[str], num_outputs: int, num_inputs: int) -> Linear:
        tensors = [weights.take(f"{prefix}{name}.weight", num_outputs, num_inputs) for name in names]
        biases = [weights.take(f"{prefix}{name}.bias", num_outputs) for name in names]
        return Linear(tensors, biases, spec.quantisation.weights)

    size, inner_size = spec.hidden_size, spec.intermediate_size
    attention = Attention(
        qkv=linear([f"attention.self.{part}" for part in ("query", "key", "value")], size, size),
        output=linear(["attention.output.dense"], size, size),
        rope_table=unrotated,
        spec=AttentionSpec(spec.head_dim**-0.5, causal=False),
        form=WriteForm(None),
    )
    return BertLayer(
        attention=attention,
        attention_norm=_norm(spec, f"{prefix}attention.output.LayerNorm", weights),
        mlp=MLP(
            up=linear(["intermediate.dense"], inner_size, size),
            down=linear(["output.dense"], size, inner_size),
        ),
        mlp_norm=_norm(spec, f"{prefix}output.LayerNorm", weights),
    )
