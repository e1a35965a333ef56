"""The encoder that the families share: its tokens see each other in both directions. It gives hidden states, no logits.

Devlin et al. 2018, arXiv 1810.04805. Keys and values go through the paged cache like a decoder's, for one step. What
reads a pair of texts ends in a head, which makes one number of the first token's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.layers.attention import Attention, AttentionMetadata, AttentionSpec, WriteForm
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.layers.mlp import MLP
from octavo.layers.norm import LayerNorm
from octavo.models.config import NOT_QUANTISED, Quantisation
from octavo.models.weights import WeightSource


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """The shape of an encoder. `num_positions`: rows of the table, of which a prompt has those from `first_position`.

    prefix: what the names of the body's tensors begin with. head: the names of the score's two layers, or none.
    `quantisation` is not the config's: whoever loads the model decides.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    num_token_types: int
    num_positions: int
    first_position: int
    layer_norm_eps: float
    prefix: str = ""
    head: tuple[str, str] | None = None
    quantisation: Quantisation = NOT_QUANTISED

    @property
    def max_position_embeddings(self) -> int:
        """Tokens of the longest prompt."""
        return self.num_positions - self.first_position

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
        """Whatever the head does not ask for of a pooler is of another task's training; position ids are counted."""
        names = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")
        return tuple(f"{self.prefix}{name}" for name in names)


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """One block: attention, then an MLP, each with the norm of the sum behind it."""

    attention: Attention
    attention_norm: LayerNorm
    mlp: MLP
    mlp_norm: LayerNorm


@dataclass(frozen=True, slots=True)
class ScoreHead:
    """output(tanh(dense(x)))."""

    dense: Linear
    output: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """x: [B, hidden_size] -> float32 [B]."""
        return self.output(torch.tanh(self.dense(x)), torch.float32).squeeze(1)


class Encoder:
    """An encoder with a head or without. Owns its weights. Families differ in `read_spec`."""

    def __init__(self, spec: EncoderSpec, weights: WeightSource) -> None:
        self.spec = spec
        prefix = f"{spec.prefix}embeddings."
        self.words = Embedding(weights.take(f"{prefix}word_embeddings.weight", spec.vocab_size, spec.hidden_size))
        positions = weights.take(f"{prefix}position_embeddings.weight", spec.num_positions, spec.hidden_size)
        types = weights.take(f"{prefix}token_type_embeddings.weight", spec.num_token_types, spec.hidden_size)
        # A row for each pair of token type and position.
        self.places = Embedding(torch.cat([positions[spec.first_position :] + each for each in types]))
        self.norm = _norm(spec, f"{prefix}LayerNorm", weights)
        unrotated = torch.zeros(spec.max_position_embeddings, 2, spec.head_dim // 2, device=positions.device)
        unrotated[:, 0] = 1.0
        self.layers = [_build_layer(spec, index, weights, unrotated) for index in range(spec.num_layers)]
        self.head = None if spec.head is None else _build_head(spec, spec.head, weights)

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv_caches: Sequence[Tensor],
        metadata: AttentionMetadata,
        token_types: Tensor | None = None,
    ) -> Tensor:
        """Whole prompts. token_ids, positions: int64 [T]; kv_caches: one a layer, written in place.

        token_types: int64 [T], below num_token_types, or None for all 0. Returns the last layer's hidden states
        [T, hidden_size].
        """
        places = positions
        if token_types is not None:
            places = token_types * self.spec.max_position_embeddings + positions
        x = self.norm(self.words(token_ids), self.places(places))
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            x = layer.attention_norm(layer.attention(x, positions, kv_cache, metadata), x)
            x = layer.mlp_norm(layer.mlp(x), x)
        return x


def _norm(spec: EncoderSpec, name: str, weights: WeightSource) -> LayerNorm:
    weight, bias = (weights.take(f"{name}.{part}", spec.hidden_size) for part in ("weight", "bias"))
    return LayerNorm(weight, bias, spec.layer_norm_eps)


def _build_head(spec: EncoderSpec, names: tuple[str, str], weights: WeightSource) -> ScoreHead:
    def linear(name: str, num_outputs: int) -> Linear:
        return Linear(
            [weights.take(f"{name}.weight", num_outputs, spec.hidden_size)],
            [weights.take(f"{name}.bias", num_outputs)],
            spec.quantisation.head,
        )

    return ScoreHead(dense=linear(names[0], spec.hidden_size), output=linear(names[1], 1))


def _build_layer(spec: EncoderSpec, index: int, weights: WeightSource, unrotated: Tensor) -> EncoderLayer:
    prefix = f"{spec.prefix}encoder.layer.{index}."

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
    return EncoderLayer(
        attention=attention,
        attention_norm=_norm(spec, f"{prefix}attention.output.LayerNorm", weights),
        mlp=MLP(
            up=linear(["intermediate.dense"], inner_size, size),
            down=linear(["output.dense"], size, inner_size),
        ),
        mlp_norm=_norm(spec, f"{prefix}output.LayerNorm", weights),
    )
