"""How fast the model could be at most, computed from the rates that this GPU reached in this run.

A serial roofline: a step takes max(weights / copy rate, FLOPs / matmul rate) + KV / copy rate. Weights and KV are
read at the rate at which the same run copied memory (bytes read and written); a matmul's FLOPs are 2 a weight and row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_timing import Bench

from octavo.models.config import DecoderSpec

_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Roof:
    """Seconds at the least; NaN where the rates are. Rates: bytes and FLOPs a second."""

    spec: DecoderSpec
    copy_bytes_per_s: float
    flops_per_s: float

    @classmethod
    def of(cls, bench: Bench, spec: DecoderSpec) -> Roof:
        return cls(spec, bench.copy_bytes_per_s, bench.flops_per_s)

    @property
    def layer_weights(self) -> int:
        """Numbers in the projections of all layers."""
        spec = self.spec
        heads = (2 * spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
        return spec.num_layers * spec.hidden_size * (heads + 3 * spec.intermediate_size)

    @property
    def head_weights(self) -> int:
        return self.spec.hidden_size * self.spec.vocab_size

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token, in all layers."""
        spec = self.spec
        return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * _BF16_BYTES

    def decode_s(self, num_rows: float, num_cached_tokens: float) -> float:
        """One step of rows that have so many cached tokens together."""
        weights = self.layer_weights + self.head_weights
        read = weights * _BF16_BYTES / self.copy_bytes_per_s
        multiply = 2 * weights * num_rows / self.flops_per_s
        return max(read, multiply) + num_cached_tokens * self.kv_bytes / self.copy_bytes_per_s

    def prefill_flops(self, num_tokens: int) -> int:
        """A prompt's: matmuls, causal attention (scores and sums over what is visible), and the last token's logits."""
        spec = self.spec
        seen = num_tokens * (num_tokens + 1) // 2
        attention = 4 * spec.num_layers * spec.num_heads * spec.head_dim * seen
        return 2 * self.layer_weights * num_tokens + attention + 2 * self.head_weights

    def prefill_s(self, num_tokens: int) -> float:
        return self.prefill_flops(num_tokens) / self.flops_per_s

    def offline_s(self, lengths: Sequence[tuple[int, int]]) -> float:
        """Requests of (prompt, output) tokens, all at once: every prompt, then steps of whoever is not done."""
        seconds = sum(self.prefill_s(num_prompt_tokens) for num_prompt_tokens, _ in lengths)
        ending = Counter(num_output_tokens for _, num_output_tokens in lengths)
        leaving = Counter[int]()
        for num_prompt_tokens, num_output_tokens in lengths:
            leaving[num_output_tokens] += num_prompt_tokens
        num_rows, cached = len(lengths), sum(num_prompt_tokens for num_prompt_tokens, _ in lengths)
        # The first token of each comes out of its prompt.
        for num_outputs in range(1, max(ending)):
            num_rows, cached = num_rows - ending[num_outputs], cached - leaving[num_outputs]
            seconds += self.decode_s(num_rows, cached + num_rows * num_outputs)
        return seconds
