"""Processor time of other processes: what one has had, and how it leaves the processors to others. Linux only."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_GREATEST_NICENESS = 19
_UNLIMITED: tuple[list[str], ...] = ([], ["max"], ["-1"])


def cpu_s_of(pid: int) -> float:
    """What a process has had of the processors, in seconds. Raises OSError where there is none.

    Source: clock_getcpuclockid(3), whose numbers Linux makes like this.
    """
    return time.clock_gettime((~pid << 3) | 2)


def step_back(pid: int) -> None:
    """From now on a process has what others leave of the processors, where the system knows of such."""
    try:
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
    except OSError:  # gVisor and some seccomp profiles know of niceness at most
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, pid, _GREATEST_NICENESS)


def has_quota(root: Path = Path("/")) -> bool:
    """Whether this process's control group may only use so much of the processors: then whoever uses what is idle takes
    it from others all the same. A container sees its own group at the top, other processes below.

    Source: cgroups(7), cpu.max of version 2 and cpu.cfs_quota_us of version 1.
    """
    found = list[list[str]]()
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        names = controllers.split(",")
        folder, name = ("cpu", "cpu.cfs_quota_us") if "cpu" in names else ("", "cpu.max")
        if "cpu" in names or names == [""]:
            top = root / "sys/fs/cgroup" / folder
            found += [line.split()[:1] for path in (top, top / group.strip("/")) for line in _lines(path / name)]
    return any(quota not in _UNLIMITED for quota in found)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
