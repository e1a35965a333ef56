"""Qwen2: Llama with biases on queries, keys and values, and a sliding window in the upper layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.models.config import DecoderSpec, layer_windows, read_spec
from octavo.models.decoder import Decoder


class Qwen2ForCausalLM(Decoder):
    """Qwen2 and Qwen2.5."""

    @classmethod
    def read_spec(cls, config: Mapping[str, Any]) -> DecoderSpec:
        """The biases are part of the family, whatever the config says."""
        windows = layer_windows(config)
        return read_spec(config, sliding_windows=windows, qkv_bias=True, output_bias=False, mlp_bias=False)
