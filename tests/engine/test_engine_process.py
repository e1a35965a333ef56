"""The engine process' side of the conversation, without the process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from octavo import engine_process
from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.outputs import FinishReason
from octavo.structured_outputs import StructuredOutputs
from octavo.wire import Abort, Shutdown, Start, Step, Submit


class ScriptedFront:
    """A connection whose other end says one message a turn; what it hears goes into `events` by its type's name."""

    def __init__(self, script: list[Any], events: list[str]) -> None:
        self._script, self._events = script, events
        self.heard: list[Any] = []

    def wait(self, timeout_s: float) -> bool:
        return True

    def read(self) -> list[Any]:
        return [self._script.pop(0)]

    def send(self, message: Any) -> None:
        self._events.append(type(message).__name__)
        self.heard.append(message)


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


@pytest.mark.parametrize(("cancelled", "num_used_before"), [("decodes", 1), ("prefills", 8), ("waits", 1)])
def test_what_a_cancelled_request_held_is_free_after_the_next_step(
    make_engine: Callable[..., Engine], make_request: Callable[..., Any], cancelled: str, num_used_before: int
) -> None:
    """One request runs at a time; of a step's tokens there are 32, in blocks of four."""
    engine = make_engine(max_num_seqs=1, long_prefill_token_threshold=32)
    requests = {
        "decodes": [make_request("decodes", [1, 2], max_tokens=100)],
        "prefills": [make_request("prefills", list(range(100)))],
        "waits": [make_request("decodes", [1, 2], max_tokens=100), make_request("waits", [3])],
    }
    submits = [Submit(request) for request in requests[cancelled]]
    front = ScriptedFront([*submits, Abort(cancelled, None, FinishReason.CANCELLED), Shutdown()], [])
    engine_process.EngineServer(engine, front).run()  # type: ignore[arg-type]
    before, after = [message for message in front.heard if isinstance(message, Step)][len(submits) - 1 :][:2]
    num_used = [step.stats.num_blocks - step.stats.num_free_blocks for step in (before, after)]
    assert num_used == [num_used_before, 1 if cancelled == "waits" else 0]
    assert after.stats.num_requests_waiting == 0
    ends = {output.request_id: output.finish_reason for output in after.outputs}
    assert ends[cancelled] is FinishReason.CANCELLED


def test_a_request_that_can_never_run_is_refused_by_the_parameter_at_fault(
    make_engine: Callable[..., Engine], make_request: Callable[..., Any]
) -> None:
    """This engine was not told what its tokens write; and its context is short."""
    asked = StructuredOutputs("regex", "a", "guided_regex")
    requests = [make_request("a", [1], structured_outputs=asked), make_request("b", [1] * 10_000)]
    front = ScriptedFront([*map(Submit, requests), Shutdown()], [])
    engine_process.EngineServer(make_engine(), front).run()  # type: ignore[arg-type]
    outputs = [output for message in front.heard if isinstance(message, Step) for output in message.outputs]
    assert [(output.finish_reason, output.parameter) for output in outputs] == [
        (FinishReason.REJECTED, "guided_regex"),
        (FinishReason.REJECTED, ""),
    ]
    assert outputs[0].error.startswith("guided_regex: 'regex' is not allowed; expected nothing")
