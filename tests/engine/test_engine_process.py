"""The engine process' side of the conversation, without the process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo import engine_process
from octavo.config import EngineConfig
from octavo.wire import Shutdown, Start


class ScriptedFront:
    """A connection whose other end says one message a turn; what it hears goes into `events` by its type's name."""

    def __init__(self, script: list[Any], events: list[str]) -> None:
        self._script, self._events = script, events

    def wait(self, timeout_s: float) -> bool:
        return True

    def read(self) -> list[Any]:
        return [self._script.pop(0)]

    def send(self, message: Any) -> None:
        self._events.append(type(message).__name__)


def test_the_collectors_work_is_done_before_the_engine_counts_as_ready(
    fake_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer than a step: the first request must not wait for it."""
    events: list[str] = []
    collector = SimpleNamespace(collect=lambda: events.append("collect"), freeze=lambda: events.append("freeze"))
    monkeypatch.setattr(engine_process, "gc", collector)
    config = EngineConfig(model=str(fake_model), executor="octavo.testing:create_fake_executor")
    front = ScriptedFront([Start(config), Shutdown()], events)
    assert engine_process.serve(front) == 0  # type: ignore[arg-type]
    assert [event for event in events if event != "Progress"][:4] == ["Hello", "collect", "freeze", "Ready"]
