"""Mistral: Llama with one sliding window for all layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.models.config import ConfigReader, DecoderSpec, read_spec
from octavo.models.decoder import Decoder


class MistralForCausalLM(Decoder):
    """Mistral 7B and its successors."""

    @classmethod
    def read_spec(cls, config: Mapping[str, Any]) -> DecoderSpec:
        """A `sliding_window` of null means all positions. Mistral never has biases."""
        read = ConfigReader(config)
        window = None if config.get("sliding_window") is None else read.count("sliding_window")
        windows = (window,) * read.count("num_hidden_layers")
        return read_spec(config, sliding_windows=windows, qkv_bias=False, output_bias=False, mlp_bias=False)
