"""Grammars in the engine over the fake executor: what is followed, how it ends, and that nothing else waits for it."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
from grammar.byte_vocabulary import BYTES, SetMask

from octavo import grammar_gate
from octavo.config import EngineConfig
from octavo.core.sequence import Sequence
from octavo.engine import Engine
from octavo.errors import InvalidRequest
from octavo.grammar_gate import GrammarGate
from octavo.outputs import EngineOutput, FinishReason
from octavo.request import EngineRequest
from octavo.structured_outputs import StructuredOutputs
from octavo.testing import FAKE_EOS, FakeModelRunner

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "ages": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["name", "ages"],
        "additionalProperties": False,
        "x-guidance": {"whitespace_flexible": False},
    }
)
JSON = StructuredOutputs("json", SCHEMA)
WORDS = StructuredOutputs("regex", "[a-z]{40}")
PATIENCE_S = 20.0

MakeRequest = Callable[..., EngineRequest]


@pytest.fixture(scope="module", params=[False, True], ids=["in turns", "ahead"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One for all tests that leave it idle, since its processes take a while to start. Its KV cache is small."""
    config = EngineConfig(
        block_size=4, max_model_len=256, max_num_seqs=8, max_num_batched_tokens=32, async_scheduling=request.param
    )
    made = Engine(config, FakeModelRunner(64, 4, strict=True))
    made.gate.use(BYTES)
    yield made
    made.shutdown()


@pytest.fixture
def ask(make_request: MakeRequest) -> MakeRequest:
    """Builds a request that follows a grammar."""

    def make(name: str, asked: StructuredOutputs | None = JSON, **settings: object) -> EngineRequest:
        defaults = {"max_tokens": 200, "stop_token_ids": (FAKE_EOS,), "end_token_ids": (FAKE_EOS,)}
        return make_request(name, list(name.encode()), structured_outputs=asked, **(defaults | settings))

    return make


class Run:
    """Steps an engine to the end of all requests and keeps what they brought, by (request id, child)."""

    def __init__(self, engine: Engine, *requests: EngineRequest) -> None:
        self.engine = engine
        self.tokens: dict[tuple[str, int], list[int]] = defaultdict(list)
        self.ends: dict[tuple[str, int], EngineOutput] = {}
        for each in requests:
            engine.add_request(each)

    def step(self) -> None:
        for output in self.engine.step():
            key = output.request_id, output.index
            assert key not in self.ends
            self.tokens[key] += output.token_ids
            if output.finish_reason is not None:
                self.ends[key] = output

    def until(self, is_reached: Callable[[], bool]) -> Run:
        deadline = time.monotonic() + PATIENCE_S
        while not is_reached():
            assert time.monotonic() < deadline and self.engine.has_work
            self.step()
        return self

    def to_the_end(self) -> Run:
        return self.until(lambda: not self.engine.has_work)

    def text(self, name: str, index: int = 0) -> str:
        tokens = self.tokens[name, index]
        return bytes(tokens[:-1] if tokens and tokens[-1] == FAKE_EOS else tokens).decode()

    def reason(self, name: str, index: int = 0) -> FinishReason | None:
        return self.ends[name, index].finish_reason


def test_a_text_follows_its_grammar_and_ends_by_itself(engine: Engine, ask: MakeRequest) -> None:
    choice = StructuredOutputs("choice", '["red", "green"]')
    run = Run(engine, ask("a"), ask("b", choice), ask("c", WORDS, max_tokens=30), ask("d", n=3)).to_the_end()
    for key in (("a", 0), ("d", 0), ("d", 1), ("d", 2)):
        assert set(json.loads(run.text(*key))) == {"name", "ages"}
        assert run.reason(*key) is FinishReason.STOP
    assert run.text("b") in ("red", "green")
    assert re.fullmatch("[a-z]{30}", run.text("c")) and run.reason("c") is FinishReason.LENGTH
    assert len({run.text("d", index) for index in range(3)}) == 3


def test_what_runs_beside_a_grammar_is_what_runs_alone(engine: Engine, ask: MakeRequest) -> None:
    alone = Run(engine, ask("plain", None, max_tokens=60)).to_the_end()
    beside = Run(engine, ask("a"), ask("plain", None, max_tokens=60), ask("b", WORDS)).to_the_end()
    assert beside.tokens["plain", 0] == alone.tokens["plain", 0]


@pytest.mark.parametrize(("num_plain", "num_turns"), [(1, 1), (3, 2)])
def test_a_text_that_follows_a_grammar_joins_each_step_unless_most_texts_follow_none(
    engine: Engine, ask: MakeRequest, num_plain: int, num_turns: int
) -> None:
    """There it joins every second one of those that are scheduled ahead."""
    run = Run(engine, ask("a", StructuredOutputs("regex", "[a-z]{20}")))
    run.until(lambda: len(run.tokens["a", 0]) > 0)
    for i in range(num_plain):
        engine.add_request(ask(f"plain {i}", None, max_tokens=50, stop_token_ids=()))
    run.until(lambda: len(run.tokens["plain 0", 0]) > 0)
    steps_before, tokens_before = engine.stats().steps_total, len(run.tokens["a", 0])
    run.until(lambda: ("a", 0) in run.ends)
    num_steps, num_tokens = engine.stats().steps_total - steps_before, len(run.tokens["a", 0]) - tokens_before
    assert ("plain 0", 0) not in run.ends
    run.to_the_end()
    assert num_tokens > 10
    assert abs(num_steps - num_tokens * (num_turns if engine.config.async_scheduling else 1)) <= 2


def test_texts_that_wait_are_not_among_those_that_follow_a_grammar(
    make_engine: Callable[..., Engine], ask: MakeRequest
) -> None:
    engine = make_engine(max_num_seqs=2)
    run = Run(engine, *(ask(f"plain {i}", None, stop_token_ids=()) for i in range(2)))
    run.until(lambda: len(engine.scheduler.running) == 2)
    for i in range(2):
        waiting = Sequence(ask(f"waiting {i}"), 0, 2 + i)
        engine.scheduler.grammars[waiting] = SetMask([1])
        engine.scheduler.add(waiting)
    assert not engine._mostly_follows_grammars
    engine.scheduler.grammars[engine.scheduler.running[0]] = SetMask([1])
    assert engine._mostly_follows_grammars


def test_at_its_end_a_grammar_outweighs_min_tokens_and_ignore_eos(engine: Engine, ask: MakeRequest) -> None:
    digits = StructuredOutputs("regex", "[0-9]{3}")
    ignoring = ask("a", digits, stop_token_ids=(), ignore_eos=True)
    without_eos = ask("b", digits, stop_token_ids=(), end_token_ids=())
    run = Run(engine, ignoring, without_eos).to_the_end()
    for name in ("a", "b"):
        assert re.fullmatch("[0-9]{3}", run.text(name)) and run.reason(name) is FinishReason.STOP
    assert run.ends["a", 0].stop_token_id == FAKE_EOS


def test_preempted_texts_go_on_where_they_were(engine: Engine, ask: MakeRequest) -> None:
    names = "abcdefgh"
    before = engine.stats().preemptions_total
    alone = {name: Run(engine, ask(name, WORDS)).to_the_end().text(name) for name in names}
    assert engine.stats().preemptions_total == before
    together = Run(engine, *(ask(name, WORDS) for name in names)).to_the_end()
    assert engine.stats().preemptions_total > before
    assert {name: together.text(name) for name in names} == alone


def test_a_text_that_has_begun_elsewhere_is_continued(engine: Engine, ask: MakeRequest) -> None:
    whole = Run(engine, ask("a", n=2)).to_the_end()
    emitted = [whole.tokens["a", index][:9] for index in range(2)]
    rest = Run(engine, ask("a", n=2, emitted_token_ids=emitted, finished=[False, False])).to_the_end()
    for index in range(2):
        assert emitted[index] + rest.tokens["a", index] == whole.tokens["a", index]


def test_what_cannot_be_followed_is_rejected_before_it_runs(engine: Engine, ask: MakeRequest) -> None:
    asked = StructuredOutputs("json", '{"not":{}}', "guided_json")
    run = Run(engine, ask("bad", asked, n=2), ask("good")).to_the_end()
    for index in range(2):
        end = run.ends["bad", index]
        assert end.finish_reason is FinishReason.REJECTED and end.parameter == "guided_json"
        assert end.error.startswith("guided_json: ") and end.error.endswith("which are not supported: not")
        assert not run.tokens["bad", index]
    assert run.reason("good") is FinishReason.STOP
    stats = engine.stats()
    assert (stats.num_requests_waiting, stats.num_requests_running) == (0, 0)


def test_a_request_may_go_away_at_any_moment(engine: Engine, ask: MakeRequest) -> None:
    for num_steps in range(12):
        fresh = StructuredOutputs("regex", f"[a-z]{{{40 + num_steps}}}")
        run = Run(engine, ask("a", fresh, n=2), ask("b", fresh))
        for _ in range(num_steps):
            run.step()
        engine.abort("a", 0)
        run.step()
        engine.abort("a")
        run.to_the_end()
        assert run.reason("a", 0) is FinishReason.CANCELLED and run.reason("b") is FinishReason.STOP
        assert engine.stats().num_requests_waiting == 0


def test_when_the_process_that_follows_texts_dies_they_go_on_in_another(engine: Engine, ask: MakeRequest) -> None:
    expected = {name: Run(engine, ask(name, WORDS)).to_the_end().text(name) for name in "ab"}
    run = Run(engine, ask("a", WORDS), ask("b", WORDS), ask("plain", None, max_tokens=200))
    run.until(lambda: len(run.tokens["a", 0]) >= 10)
    _, follower = engine.gate.pids
    os.kill(follower, signal.SIGKILL)
    num_plain = len(run.tokens["plain", 0])
    run.until(lambda: engine.gate.pids[1] != follower)
    num_then = len(run.tokens["a", 0])
    run.until(lambda: len(run.tokens["plain", 0]) >= num_plain + 20)
    assert len(run.tokens["a", 0]) <= num_then + 1, "another process cannot be up so soon"
    run.to_the_end()
    assert {name: run.text(name) for name in "ab"} == expected
    assert run.reason("plain") is FinishReason.LENGTH


def test_a_process_that_stands_still_holds_up_nobody_else(engine: Engine, ask: MakeRequest) -> None:
    expected = Run(engine, ask("a", WORDS)).to_the_end().text("a")
    run = Run(engine, ask("a", WORDS), ask("plain", None, max_tokens=200))
    run.until(lambda: len(run.tokens["a", 0]) >= 10)
    _, follower = engine.gate.pids
    os.kill(follower, signal.SIGSTOP)
    begun_at, num_plain = time.monotonic(), len(run.tokens["plain", 0])
    run.until(lambda: len(run.tokens["plain", 0]) >= num_plain + 100)
    # One step waited for the mask that did not come, the others did not.
    assert time.monotonic() - begun_at < 2.0
    os.kill(follower, signal.SIGCONT)
    run.to_the_end()
    assert run.text("a") == expected
    assert engine.gate.pids[1] == follower


def test_nobody_waits_for_a_trial_whose_process_dies_but_whoever_asked_for_it(engine: Engine, ask: MakeRequest) -> None:
    Run(engine, ask("warm up")).to_the_end()
    run = Run(engine, ask("a", WORDS))
    trials, follower = engine.gate.pids
    os.kill(trials, signal.SIGSTOP)
    run.engine.add_request(ask("fresh", StructuredOutputs("regex", "[a-z]{9}")))
    run.until(lambda: ("a", 0) in run.ends)
    os.kill(trials, signal.SIGKILL)
    run.to_the_end()
    assert run.reason("a") is FinishReason.STOP and re.fullmatch("[a-z]{9}", run.text("fresh"))
    assert engine.gate.pids[0] != trials and engine.gate.pids[1] == follower


def test_with_nothing_to_compute_an_engine_waits_for_either_process_at_once(
    engine: Engine, ask: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(engine, ask("warm up")).to_the_end()
    monkeypatch.setattr(grammar_gate, "_POLL_S", PATIENCE_S / 4)
    begun_at = time.monotonic()
    Run(engine, ask("a", StructuredOutputs("regex", "[a-z]{8}"))).to_the_end()
    assert time.monotonic() - begun_at < PATIENCE_S / 4


def test_whoever_comes_back_for_a_lost_mask_is_not_taken_for_lost_again(ask: MakeRequest) -> None:
    gate, mask = GrammarGate(), SetMask([1], was_missed=True)
    seq = Sequence(ask("a"), 0, 0)
    gate.hold(seq, mask)
    assert gate.num_held == 1 and not mask.was_missed
    assert gate.drop(seq) and not gate.drop(seq)


def test_without_a_grammar_no_process_is_started(make_engine: Callable[..., Engine], ask: MakeRequest) -> None:
    plain = make_engine()
    Run(plain, ask("a", None, max_tokens=5)).to_the_end()
    assert plain.gate.pids == ()


def test_an_engine_that_knows_no_vocabulary_says_so(make_engine: Callable[..., Engine], ask: MakeRequest) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_engine().add_request(ask("a"))
    assert caught.value.parameter == "structured_outputs"
