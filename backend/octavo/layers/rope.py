"""Rotary position embedding: inverse frequencies of each variant, and the table of cosines and sines.

Knows numbers only; which config key means what is read in models/config.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Which rotation. What a variant does not use is ignored; `original_context` is in tokens.

    `frequency_factors`, one a frequency, divide the frequencies after everything else (a GGUF file brings the llama3
    variant this way).
    """

    variant: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    frequency_factors: tuple[float, ...] = ()


def rope_table(rope: RopeSpec, head_dim: int, max_position: int) -> Tensor:
    """fp32 [max_position, 2, head_dim / 2] on CPU: cosines, then sines, of position x frequency."""
    frequencies = VARIANTS[rope.variant](rope, head_dim)
    if rope.frequency_factors:
        frequencies = frequencies / torch.tensor(rope.frequency_factors, dtype=torch.float32)
    angles = torch.arange(max_position, dtype=torch.float32)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=1) * _attention_factor(rope)


def _default(rope: RopeSpec, head_dim: int) -> Tensor:
    return 1.0 / (rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim))


def _linear(rope: RopeSpec, head_dim: int) -> Tensor:
    return _default(rope, head_dim) / rope.factor


def _llama3(rope: RopeSpec, head_dim: int) -> Tensor:
    """Long wavelengths are slowed down by `factor`, short ones kept, those between blended."""
    plain = _default(rope, head_dim)
    wavelengths = 2 * math.pi / plain
    turns = rope.original_context / wavelengths
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - kept) * plain / rope.factor + kept * plain
    slow = wavelengths > rope.original_context / rope.low_freq_factor
    fast = wavelengths < rope.original_context / rope.high_freq_factor
    return torch.where(slow, plain / rope.factor, torch.where(fast, plain, blended))


def _yarn(rope: RopeSpec, head_dim: int) -> Tensor:
    """YaRN (arXiv 2309.00071), section 3.2: interpolates frequencies below `beta_slow` turns, keeps those above
    `beta_fast`, ramps between."""

    def dimension_of(num_turns: float) -> float:
        ratio = math.log(rope.original_context / (num_turns * 2 * math.pi))
        return head_dim * ratio / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    powers = rope.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    kept = 1 - ramp
    return (1.0 / (rope.factor * powers)) * (1 - kept) + (1.0 / powers) * kept


def _attention_factor(rope: RopeSpec) -> float:
    """What YaRN multiplies cosines and sines by, so that attention keeps its temperature."""
    if rope.variant != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor

    def temperature(mscale: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * mscale * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return temperature(rope.mscale) / temperature(rope.mscale_all_dim)
    return temperature(1.0)


VARIANTS: dict[str, Callable[[RopeSpec, int], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
