"""DecoderSpec: what the shared decoder must know of a model, read from the keys of a Hugging Face config.json.

Accepts the spellings of transformers 4 and 5. Knows no tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.checkpoint import DECODER_CONTEXT
from octavo.errors import ModelLoadError, shorten
from octavo.layers.attention import MAX_HEAD_DIM
from octavo.layers.rope import VARIANTS, RopeSpec


@dataclass(frozen=True, slots=True)
class Quantisation:
    """What is kept in fewer bits than the model's dtype. weights, head: keys of quant.SCHEMES, or None.

    `head` is for the last layer, `weights` for all others. fp8_kv_cache: keys and values are FP8 e4m3, over scales that
    the checkpoint may bring. gguf_codes: weights that a GGUF file has in 8 or 4 bits stay as they are there.
    """

    weights: str | None = None
    fp8_kv_cache: bool = False
    head: str | None = None
    gguf_codes: bool = False


NOT_QUANTISED = Quantisation()


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """The shape of a decoder. `sliding_windows` has one entry a layer: a number of tokens, or None for all.

    `quantisation` is not the config's: whoever loads the model decides.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeSpec
    sliding_windows: tuple[int | None, ...]
    tied_embeddings: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    quantisation: Quantisation = NOT_QUANTISED

    @property
    def num_layers(self) -> int:
        """Decoder layers, each with a KV cache of its own."""
        return len(self.sliding_windows)

    @property
    def unused_tensors(self) -> tuple[str, ...]:
        """Of a checkpoint: the last layer where it is the embedding's table."""
        return ("lm_head.weight",) if self.tied_embeddings else ()


class ConfigReader:
    """Reads keys of one config.json; raises ModelLoadError that names the key."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; `default` where the key is absent or null."""
        value = self.config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ModelLoadError(f"config.json: {key} is {shorten(value)}; expected a number above 0")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.number(key, default)
        if value != int(value):
            raise ModelLoadError(f"config.json: {key} is {value}; expected a whole number")
        return int(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.config.get(key)
        return default if value is None else bool(value)


def read_spec(config: Mapping[str, Any], **family: Any) -> DecoderSpec:
    """The spec of a Llama-like config. `family` overrides fields that a family decides by itself."""
    read = ConfigReader(config)
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelLoadError(f"config.json: hidden_act {shorten(activation)} is not supported; known are silu")
    for key, causal in (("is_causal", True), ("use_bidirectional_attention", False)):
        if read.flag(key, causal) is not causal:
            raise ModelLoadError(
                f"config.json: {key} {shorten(config[key])} is not supported; a decoder's tokens see only those before"
            )
    num_heads, hidden_size = read.count("num_attention_heads"), read.count("hidden_size")
    num_kv_heads = read.count("num_key_value_heads", num_heads)
    head_dim = read.count("head_dim", hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise ModelLoadError(
            f"config.json: num_attention_heads {num_heads} is no multiple of num_key_value_heads {num_kv_heads}"
        )
    if head_dim % 8 or head_dim > MAX_HEAD_DIM:
        raise ModelLoadError(
            f"config.json: head_dim {head_dim} is not supported; expected a multiple of 8 up to {MAX_HEAD_DIM}"
        )
    max_position = read.count("max_position_embeddings", DECODER_CONTEXT)
    attention_bias = read.flag("attention_bias")
    fields: dict[str, Any] = {
        "qkv_bias": attention_bias,
        "output_bias": attention_bias,
        "mlp_bias": read.flag("mlp_bias"),
        "sliding_windows": (None,) * read.count("num_hidden_layers"),
    }
    return DecoderSpec(
        hidden_size=hidden_size,
        intermediate_size=read.count("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=read.count("vocab_size"),
        max_position_embeddings=max_position,
        rms_norm_eps=float(read.number("rms_norm_eps", 1e-6)),
        rope=_read_rope(config, max_position),
        tied_embeddings=read.flag("tie_word_embeddings"),
        **(fields | family),
    )


def layer_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Each layer's sliding window where `layer_types`, or `use_sliding_window` with `max_window_layers`, decide."""
    read = ConfigReader(config)
    num_layers = read.count("num_hidden_layers")
    if not read.flag("use_sliding_window") or config.get("sliding_window") is None:
        return (None,) * num_layers
    window = read.count("sliding_window")
    kinds = config.get("layer_types")
    if kinds is None:
        first = int(config.get("max_window_layers", 28))
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    if len(kinds) != num_layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise ModelLoadError(
            f"config.json: layer_types {shorten(kinds)} is not supported; expected {num_layers} times "
            "'full_attention' or 'sliding_attention'"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _read_rope(config: Mapping[str, Any], max_position: int) -> RopeSpec:
    """Reads `rope_parameters`, or the older `rope_scaling` beside `rope_theta`."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ModelLoadError(f"config.json: rope_parameters is {shorten(scaling)}; expected an object")
    variant = scaling.get("rope_type") or scaling.get("type") or "default"
    if variant not in VARIANTS:
        raise ModelLoadError(
            f"config.json: rope_type {shorten(variant)} is not supported; known are {', '.join(VARIANTS)}"
        )
    share = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if share != 1.0:
        raise ModelLoadError(f"config.json: partial_rotary_factor {shorten(share)} is not supported; expected 1.0")
    read = ConfigReader(scaling)
    theta = read.number("rope_theta", ConfigReader(config).number("rope_theta", 10000.0))
    if variant == "default":
        return RopeSpec(theta=float(theta))
    original = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
    original = int(original or max_position)
    # A factor that is absent follows from the two contexts; only YaRN's checkpoints leave it out.
    factor = read.number("factor", max_position / original if variant == "yarn" else None)
    given = scaling.get("attention_factor")
    return RopeSpec(
        variant=variant,
        theta=float(theta),
        factor=float(factor),
        original_context=original,
        low_freq_factor=float(read.number("low_freq_factor", 1.0)),
        high_freq_factor=float(read.number("high_freq_factor", 4.0)),
        beta_fast=float(scaling.get("beta_fast") or 32.0),
        beta_slow=float(scaling.get("beta_slow") or 1.0),
        truncate=bool(scaling.get("truncate", True)),
        attention_factor=None if given is None else float(given),
        mscale=float(scaling.get("mscale") or 0.0),
        mscale_all_dim=float(scaling.get("mscale_all_dim") or 0.0),
    )
