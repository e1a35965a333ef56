"""The C library's heap: what a step frees stays with the process for the next step.

By default large pieces go back to the kernel when they are freed, and every step pays for clearing the same pages.
"""

from __future__ import annotations

import ctypes
import os

# malloc.h of the GNU C library.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# The most that the library accepts: larger pieces have a mapping of their own.
_LARGEST_IN_HEAP_BYTES = 32 << 20
# Free memory at the heap's end beyond this goes back: more than what a step has at its fullest.
_KEPT_BYTES = 512 << 20


def keep_freed_memory() -> None:
    """Lets this process keep what it frees, up to 512 MiB at the heap's end.

    Does nothing with another C library, or where the environment sets its heap (MALLOC_..., GLIBC_TUNABLES).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if mallopt is not None and not is_set:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
