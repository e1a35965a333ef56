"""The decoder that the families share: described by a DecoderSpec, built layer by layer from a weight source.

Knows no file format, no device's peculiarities (layers and kernels do) and no batch beyond AttentionMetadata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from octavo.layers.attention import Attention, AttentionMetadata, AttentionSpec, HeadNorm, WriteForm
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.layers.mlp import GatedMLP
from octavo.layers.norm import RMSNorm, RMSNormFp8
from octavo.layers.rope import rope_table
from octavo.models.config import DecoderSpec, read_spec
from octavo.models.weights import WeightSource


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One block: attention, then a gated MLP, each behind a norm that also adds the residual."""

    attention_norm: RMSNorm | RMSNormFp8
    attention: Attention
    mlp_norm: RMSNorm | RMSNormFp8
    mlp: GatedMLP


class Decoder:
    """A causal language model. Owns its weights; the KV cache belongs to the caller.

    Subclasses override `read_spec` where a family differs.
    """

    def __init__(self, spec: DecoderSpec, weights: WeightSource) -> None:
        self.spec = spec
        table = weights.take("model.embed_tokens.weight", spec.vocab_size, spec.hidden_size)
        self.embedding = Embedding(table)
        angles = rope_table(spec.rope, spec.head_dim, spec.max_position_embeddings).to(table.device)
        self.layers = [_build_layer(spec, index, weights, angles) for index in range(spec.num_layers)]
        self.norm = RMSNorm(weights.take("model.norm.weight", spec.hidden_size), spec.rms_norm_eps)
        self.lm_head = _build_head(spec, weights, table)

    @classmethod
    def read_spec(cls, config: Mapping[str, Any]) -> DecoderSpec:
        """The spec of a config.json of this family; raises ModelLoadError."""
        return read_spec(config)

    def __call__(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv_caches: Sequence[Tensor],
        metadata: AttentionMetadata,
        sampled: Tensor | None = None,
    ) -> Tensor:
        """One step of all rows. token_ids, positions: int64 [T]; kv_caches: one a layer, written in place.

        Token id -1 - r stands for sampled[r], int64 [rows]: the host need not know it.
        Returns the final hidden states [T, hidden_size], normed.
        """
        residual = self.embedding(token_ids, sampled)
        x: Tensor | None = None
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            x = layer.attention(layer.attention_norm.add(x, residual), positions, kv_cache, metadata)
            x = layer.mlp(layer.mlp_norm.add(x, residual))
        return self.norm.add(x, residual)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden: [R, hidden_size] -> float32 [R, vocab_size]."""
        return self.lm_head(hidden, torch.float32)


def _build_head(spec: DecoderSpec, weights: WeightSource, table: Tensor) -> Linear:
    """The last layer; tied, it is the embedding's table, which an embedding reads as numbers."""
    name = "model.embed_tokens.weight" if spec.tied_embeddings else "lm_head.weight"
    kept = weights.take_codes({name: spec.vocab_size}, spec.hidden_size)
    if kept is None and not spec.tied_embeddings:
        table = weights.take(name, spec.vocab_size, spec.hidden_size)
    return Linear([table] if kept is None else kept, quantization=spec.quantisation.head)


def _build_layer(spec: DecoderSpec, index: int, weights: WeightSource, angles: Tensor) -> DecoderLayer:
    prefix = f"model.layers.{index}."

    def norm(name: str, before: Linear) -> RMSNorm | RMSNormFp8:
        kind = RMSNormFp8 if before.takes_fp8 else RMSNorm
        return kind(weights.take(f"{prefix}{name}.weight", spec.hidden_size), spec.rms_norm_eps)

    def linear(sizes: dict[str, int], num_inputs: int, has_bias: bool) -> Linear:
        tensors = weights.take_stacked({f"{prefix}{name}.weight": size for name, size in sizes.items()}, num_inputs)
        biases = [weights.take(f"{prefix}{name}.bias", size) for name, size in sizes.items()] if has_bias else []
        return Linear(tensors, biases, spec.quantisation.weights)

    q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    projections = {"self_attn.q_proj": q_size, "self_attn.k_proj": kv_size, "self_attn.v_proj": kv_size}
    gates = {"mlp.gate_proj": spec.intermediate_size, "mlp.up_proj": spec.intermediate_size}
    head_norm = _head_norm(spec, prefix, weights) if spec.qk_norm else None
    scales = _kv_scales(f"{prefix}self_attn.", weights) if spec.quantisation.fp8_kv_cache else (1.0, 1.0)
    attention = Attention(
        qkv=linear(projections, spec.hidden_size, spec.qkv_bias),
        output=linear({"self_attn.o_proj": spec.hidden_size}, q_size, spec.output_bias),
        rope_table=angles,
        spec=AttentionSpec(spec.head_dim**-0.5, spec.sliding_windows[index], None, *scales),
        form=WriteForm(head_norm, *scales),
    )
    mlp = GatedMLP(
        gate_up=linear(gates, spec.hidden_size, spec.mlp_bias),
        down=linear({"mlp.down_proj": spec.hidden_size}, spec.intermediate_size, spec.mlp_bias),
    )
    return DecoderLayer(
        attention_norm=norm("input_layernorm", attention.qkv),
        attention=attention,
        mlp_norm=norm("post_attention_layernorm", mlp.gate_up),
        mlp=mlp,
    )


def _kv_scales(prefix: str, weights: WeightSource) -> tuple[float, float]:
    """(k_scale, v_scale) of an FP8 cache, 1 where the checkpoint has none, by the names that quantisers give them."""
    key, value = (
        weights.scale_of(f"{prefix}{part}_scale", f"{prefix}attn.{part}_scale", f"{prefix}{part}_proj.{part}_scale")
        for part in "kv"
    )
    return key, value


def _head_norm(spec: DecoderSpec, prefix: str, weights: WeightSource) -> HeadNorm:
    names = (f"{prefix}self_attn.{part}_norm.weight" for part in "qk")
    query_weight, key_weight = (weights.take(name, spec.head_dim) for name in names)
    return HeadNorm(query_weight, key_weight, spec.rms_norm_eps)
