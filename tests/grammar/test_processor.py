"""Processor time of other processes, on systems that know of less than Linux does, too."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo.grammar.processor import cpu_s_of, has_quota, step_back


@pytest.fixture
def other() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


def test_a_process_steps_back(other: int) -> None:
    step_back(other)
    assert os.sched_getscheduler(other) == os.SCHED_IDLE


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EPERM, errno.ENOSYS])
def test_it_does_so_where_the_system_only_knows_of_niceness(
    other: int, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, "not here")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    step_back(other)
    assert os.getpriority(os.PRIO_PROCESS, other) == 19
    monkeypatch.setattr(os, "setpriority", refuse)
    step_back(other)


def test_the_time_that_a_process_has_had_grows_while_it_computes() -> None:
    before_s = cpu_s_of(os.getpid())
    assert sum(range(10**6)) and cpu_s_of(os.getpid()) > before_s
    with pytest.raises(OSError, match="Invalid"):
        cpu_s_of(2**22 + 1)  # more than any process's number


@pytest.mark.parametrize(
    ("group", "file", "quota", "expected"),
    [
        ("0::/", "cpu.max", "max 100000", False),
        ("0::/", "cpu.max", "200000 100000", True),
        ("0::/system.slice/x", "system.slice/x/cpu.max", "50000 100000", True),
        ("4:cpu,cpuacct:/", "cpu/cpu.cfs_quota_us", "-1", False),
        ("4:cpu,cpuacct:/", "cpu/cpu.cfs_quota_us", "150000", True),
        ("4:cpu,cpuacct:/docker/7f", "cpu/cpu.cfs_quota_us", "150000", True),
        ("5:memory:/", "memory/cpu.cfs_quota_us", "150000", False),
        ("", "cpu.max", "200000 100000", False),
    ],
)
def test_a_quota_of_the_processors_is_seen(tmp_path: Path, group: str, file: str, quota: str, expected: bool) -> None:
    for path, text in ((tmp_path / "proc/self/cgroup", group), (tmp_path / "sys/fs/cgroup" / file, quota)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n" if text else "")
    assert has_quota(tmp_path) is expected
