"""Llama: the shared decoder as it is."""

from __future__ import annotations

from octavo.models.decoder import Decoder


class LlamaForCausalLM(Decoder):
    """Llama 2 and 3, SmolLM2 and everything else of that shape."""
