"""The lock among one server's processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from octavo_triton.server_wide_lock import ServerWideLock

# At each line that it is sent, it tries to take the lock and says whether it has it.
TAKER = """
import sys
from octavo_triton.server_wide_lock import ServerWideLock
lock = ServerWideLock("metrics", "taken by processes")
for line in sys.stdin:
    print(lock.acquire(), flush=True)
"""
LONG_NAME = "m" * 4000


def test_only_one_holds_it_until_it_lets_go() -> None:
    first, second = ServerWideLock("metrics", LONG_NAME), ServerWideLock("metrics", LONG_NAME)
    assert first.acquire()
    assert not second.acquire()
    # One that does not hold it changes nothing.
    second.release()
    assert not second.acquire()
    first.release()
    assert second.acquire()
    second.release()


def test_other_names_are_another_lock() -> None:
    locks = [ServerWideLock("metrics", "a"), ServerWideLock("metrics", "b"), ServerWideLock("metrics", "ab")]
    assert [lock.acquire() for lock in locks] == [True] * 3
    for lock in locks:
        lock.release()


@pytest.mark.slow
def test_processes_of_one_parent_exclude_each_other_and_a_killed_one_holds_nothing() -> None:
    def asks(process: subprocess.Popen[str]) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        print(file=process.stdin, flush=True)
        return process.stdout.readline().strip()

    command = [sys.executable, "-c", TAKER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first, subprocess.Popen(command, **pipes) as second:
        assert asks(first) == "True"
        assert asks(second) == "False"
        # That of another parent: this process has another one.
        stranger = ServerWideLock("metrics", "taken by processes")
        assert stranger.acquire()
        stranger.release()
        first.kill()
        first.wait()
        assert asks(second) == "True"
