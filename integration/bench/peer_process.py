"""One contestant's adapter in a process of its own, asked for one workload after the other.

Knows the lines that are exchanged, and ends a process that says nothing for too long; nothing of ratios.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import peer_contestants as contestants
from peer_contestants import Contestant
from peer_install import Peers
from stage import Load

from octavo.workloads import Item

START_LIMIT_S = 400.0
RUN_LIMIT_S = 1200.0
STOP_LIMIT_S = 30.0


class PeerFailed(Exception):
    """A contestant could not be measured; the text says why."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What holds for the whole run."""

    peers: Peers
    threads: int

    def log(self, contestant: Contestant) -> Path:
        """Where a contestant's messages go."""
        return self.peers.folder / f"{contestant.name}.log"


class AdapterProcess:
    """A context manager; leaving it, however, leaves no process behind. `first_token_s` is from exec to first token."""

    def __init__(self, contestant: Contestant, setting: Setting) -> None:
        self._log = setting.log(contestant)
        peers, threads = setting.peers, setting.threads
        told = json.dumps(contestants.settings(contestant, peers, threads))
        command = [contestants.python(contestant, peers), str(contestants.ADAPTERS / contestant.adapter), told]
        with self._log.open("wb") as log:
            start = time.monotonic()
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=contestants.environment(contestant, peers, threads),
                    start_new_session=True,
                )
            except OSError as error:
                raise PeerFailed(str(error)) from error
        try:
            ready = self._answer(START_LIMIT_S)
        except BaseException:
            self._end()
            raise
        self.version: str = ready["version"]
        self.first_token_s: float = ready["first_token_at"] - start

    def __enter__(self) -> AdapterProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def run(self, items: Sequence[Item]) -> tuple[dict[str, Any], float]:
        """What came of the requests, and how many cores others used meanwhile. Raises PeerFailed."""
        asked = [[item.prompt_token_ids, item.num_output_tokens] for item in items]
        self._say(json.dumps({"items": asked}))
        self._answer(START_LIMIT_S)
        load = Load()
        self._say("go")
        figures: dict[str, Any] = self._answer(RUN_LIMIT_S)
        return figures, load.others()

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PeerFailed(self._last_words()) from None

    def _answer(self, limit_s: float) -> Any:
        assert self._process.stdout is not None
        overdue = threading.Timer(limit_s, self._kill)
        overdue.start()
        try:
            line = self._process.stdout.readline()
        finally:
            overdue.cancel()
        if not line:
            raise PeerFailed(self._last_words())
        return json.loads(line)

    def _end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_LIMIT_S)
        # Also what it may have left behind.
        self._kill()
        self._process.wait()
        self._process.stdout.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_LIMIT_S)
        self._kill()
        code = self._process.wait()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"it ended with exit status {code}: {lines[-1].strip() if lines else 'no message'}"
