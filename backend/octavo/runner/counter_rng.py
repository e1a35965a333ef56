"""Counter-based random numbers: noise for a token is a pure function of (seed, position, token id).

So a draw does not depend on batch mates, on when it is made or on how many were made before. The arithmetic is fixed,
bit for bit, in `NoiseSource.gumbel`, for every device to follow. Knows nothing of logits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_UINT64_MAX = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_TOKEN_STEP, _FIRST, _SECOND = np.uint32(0x9E3779B9), np.uint32(0x7FEB352D), np.uint32(0x846CA68B)
# (1 - 2**-24) * 2**-32, exact in fp32. An odd 32-bit integer, rounded to fp32 and multiplied by it, lies in
# [2**-32 (1 - 2**-24), 1 - 2**-24]: never 0 and never 1, and finely spaced near 0, where the largest noise comes from.
_TO_UNIT = np.float32((1 - 2.0**-24) * 2.0**-32)

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


def mix64(value: int) -> int:
    """A bijection of 64-bit integers in which every input bit moves every output bit: SplitMix64's finalizer.

    Takes any int (modulo 2**64); returns 0 .. 2**64 - 1. Source: Steele, Lea, Flood, OOPSLA 2014 (Stafford's Mix13).
    """
    value &= _UINT64_MAX
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _UINT64_MAX
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _UINT64_MAX
    return value ^ (value >> 31)


def stream_key(seed: int, position: int) -> tuple[np.uint32, np.uint32]:
    """Low and high half of mix64(mix64(seed) + position * 0x9E3779B97F4A7C15), modulo 2**64. Any int64 seed."""
    mixed = mix64(mix64(seed) + position * _GOLDEN)
    return np.uint32(mixed & 0xFFFFFFFF), np.uint32(mixed >> 32)


class NoiseSource:
    """Draws for a vocabulary. Owns the table of token hashes and one scratch row; not for two threads at once."""

    def __init__(self, vocab_size: int) -> None:
        self._hashes = _token_hashes(vocab_size)
        self._scratch = np.empty((2, vocab_size), np.uint32)

    def gumbel(self, seed: int, position: int, token_ids: Integers | None = None) -> Floats:
        """Standard Gumbel noise, fp32, for the given token ids, or (None) for the whole vocabulary in order.

        With uint32 arithmetic modulo 2**32, `t` the token id and (k0, k1) the stream's key:
            t *= 0x9E3779B9;  t ^= t >> 16;  t *= 0x7FEB352D;  t ^= t >> 15      (the table)
            x = t ^ k0;  x *= 0x7FEB352D;  x ^= x >> 15;  x += k1;  x *= 0x846CA68B;  x ^= x >> 16;  x |= 1
            v = float32(x) * ((1 - 2**-24) * 2**-32)        rounded to nearest even
            noise = -log(-log1p(-v))
        The integers and v are the same everywhere; the logarithms to a few units in the last place.
        """
        return _gumbel_of_uniform(self.uniform(seed, position, token_ids))

    def uniform(self, seed: int, position: int, token_ids: Integers | None = None) -> Floats:
        """`v` of `gumbel`: uniform numbers strictly between 0 and 1, fp32, in a new array."""
        low, high = stream_key(seed, position)
        tokens = self._hashes if token_ids is None else self._hashes[token_ids]
        x, shifted = self._scratch[:, : len(tokens)]
        np.bitwise_xor(tokens, low, out=x)
        _multiply_and_fold(x, shifted, _FIRST, 15)
        x += high
        _multiply_and_fold(x, shifted, _SECOND, 16)
        x |= np.uint32(1)
        uniform: Floats = x.astype(np.float32)
        uniform *= _TO_UNIT
        return uniform


def _token_hashes(vocab_size: int) -> NDArray[np.uint32]:
    x = np.arange(vocab_size, dtype=np.uint32) * _TOKEN_STEP
    x ^= x >> np.uint32(16)
    _multiply_and_fold(x, np.empty_like(x), _FIRST, 15)
    return x


def _multiply_and_fold(x: NDArray[np.uint32], shifted: NDArray[np.uint32], factor: np.uint32, shift: int) -> None:
    """x = x * factor, then x ^= x >> shift, in place; `shifted` is overwritten."""
    x *= factor
    np.right_shift(x, np.uint32(shift), out=shifted)
    x ^= shifted


def _gumbel_of_uniform(uniform: Floats) -> Floats:
    """-log(-log1p(-uniform)), in place."""
    np.negative(uniform, out=uniform)
    np.log1p(uniform, out=uniform)
    np.negative(uniform, out=uniform)
    np.log(uniform, out=uniform)
    np.negative(uniform, out=uniform)
    return uniform
