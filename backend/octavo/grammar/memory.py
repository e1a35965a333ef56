"""What this process takes of the memory, and a limit to it."""

from __future__ import annotations

import resource

_PAGE_BYTES = resource.getpagesize()


def resident_bytes(pid: int | None = None) -> int:
    """What of a process is in the machine's memory: of this one, or another. Raises OSError where there is none."""
    return _statm(pid)[1]


def limit_growth(num_bytes: int) -> None:
    """From now on this process's address space may grow by so much; what does not fit ends native code."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = _statm()[0] + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _statm(pid: int | None = None) -> tuple[int, int]:
    """Address space and resident set, in bytes. Source: proc(5)."""
    with open(f"/proc/{pid or 'self'}/statm") as file:
        size, resident, *_ = map(int, file.read().split())
    return size * _PAGE_BYTES, resident * _PAGE_BYTES
