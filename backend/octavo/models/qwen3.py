"""Qwen3: Llama with RMSNorm over each query and key head, and a sliding window in the upper layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.models.config import DecoderSpec, layer_windows, read_spec
from octavo.models.decoder import Decoder


class Qwen3ForCausalLM(Decoder):
    """Qwen3, dense."""

    @classmethod
    def read_spec(cls, config: Mapping[str, Any]) -> DecoderSpec:
        """`head_dim` is 128 where the config does not say."""
        config = {**config, "head_dim": config.get("head_dim") or 128}
        return read_spec(config, sliding_windows=layer_windows(config), mlp_bias=False, qk_norm=True)
