"""The C library's heap: what a step frees stays with the process for the next step.

By default large pieces go back to the kernel when they are freed, and every step pays for clearing the same pages.
"""

from __future__ import annotations

import ctypes

# malloc.h of the GNU C library.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# The most that the library accepts: larger pieces have a mapping of their own.
_LARGEST_IN_HEAP_BYTES = 32 << 20
# More than what a step has at its fullest: freed memory beyond this goes back.
_KEPT_BYTES = 512 << 20


def keep_freed_memory() -> None:
    """Lets this process keep up to 512 MiB of freed memory. Does nothing with another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
