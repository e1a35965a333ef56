"""Counter-based random numbers in the Triton language: for a token a pure function of (seed, position, token id).

The integers are those of the engine's counter generator on the CPU, bit for bit, so that a seeded text is the same on
every device as far as the logits are. Knows nothing of logits.
"""

from __future__ import annotations

from octavo.kernels.language import jit, tl

# (1 - 2**-24) * 2**-32, exact in fp32: an odd 32-bit integer times this is never 0 and never 1.
_TO_UNIT = tl.constexpr((1 - 2.0**-24) * 2.0**-32)


@jit
def _mix64(value: tl.tensor) -> tl.tensor:
    """SplitMix64's finalizer, on uint64."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB
    return value ^ (value >> 31)


@jit
def stream_key(seed: tl.tensor, position: tl.tensor) -> tl.tensor:
    """uint64 key of one draw. seed, position: int64 numbers."""
    mixed = _mix64(seed.to(tl.uint64, bitcast=True))
    return _mix64(mixed + position.to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15)


@jit
def uniform(key: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    """fp32 numbers strictly between 0 and 1, one a token id (int32), the same bits on every device."""
    x = token_ids.to(tl.uint32) * 0x9E3779B9
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x ^ key.to(tl.uint32)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x + (key >> 32).to(tl.uint32)
    x = x * 0x846CA68B
    x = x ^ (x >> 16)
    return (x | 1).to(tl.float32) * _TO_UNIT


@jit
def exponential(key: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    """-log1p(-uniform), fp32: standard exponential noise, whose negative logarithm is standard Gumbel noise.

    Near 0, where the largest Gumbel noise comes from, 1 - v loses digits of v. What it lost is known exactly, and the
    logarithm's slope there is 1.
    """
    v = uniform(key, token_ids)
    rest = 1.0 - v
    return (v - (1.0 - rest)) - tl.log(rest)
