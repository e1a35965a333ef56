"""What a layer's attention computes, apart from its tensors. Knows neither the batch nor the device."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """weights = softmax(soft_cap * tanh(query . key * scale / soft_cap)) over the last `window` positions.

    window, soft_cap: None for all positions and for scores as they are. k_scale, v_scale: of an FP8 KV cache, which
    holds keys / k_scale and values / v_scale; 1 for every other. Not `causal`: over all positions of the sequence, the
    later ones too; there is no window then.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    k_scale: float = 1.0
    v_scale: float = 1.0
    causal: bool = True

    def __post_init__(self) -> None:
        assert self.causal or self.window is None, "a window is counted backwards"

    @property
    def score_factors(self) -> tuple[float, float]:
        """(cap_factor, factor): the exponent of 2 of a weight is (query . stored key) * factor.

        With a soft cap it is tanh(...) * factor, and tanh(...) = 1 - 2 / (1 + 2 ** (query . stored key * cap_factor)).
        """
        scale = self.scale * self.k_scale
        if self.soft_cap is None:
            return 0.0, math.log2(math.e) * scale
        return 2 * math.log2(math.e) * scale / self.soft_cap, math.log2(math.e) * self.soft_cap
