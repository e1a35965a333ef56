"""What the runners that compute a step while they are asked for it have in common: the cache's tensors, and counts."""

from __future__ import annotations

from torch import Tensor

from octavo.kernels import native


class EagerRunner:
    """Owns the KV cache's tensors, one a layer; see kv_cache.py."""

    def __init__(self, kv_caches: list[Tensor]) -> None:
        self._kv_caches = kv_caches
        self._num_blocks = len(kv_caches[0])

    @property
    def num_blocks(self) -> int:
        """KV blocks in the pool, the null block included."""
        return self._num_blocks

    @property
    def num_fallbacks(self) -> int:
        """How often a slower way was taken than the one intended."""
        return native.num_fallbacks

    def shutdown(self) -> None:
        """Lets go of the KV cache's memory. No step may follow."""
        self._kv_caches = []
