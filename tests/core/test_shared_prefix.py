"""Sequences that share a prefix which is being computed wait for it instead of computing it again."""

from __future__ import annotations

import pytest
from core.test_engine_steps import drain, expected, tokens

PREFIX = [1 + i % 90 for i in range(100)]
ONE, TWO = [*PREFIX, 91, 92], [*PREFIX, 93, 94]


@pytest.fixture
def watched(make_engine):
    """An engine, and how many tokens of prompts it has computed."""
    engine, computed = make_engine(), []
    execute = engine.executor.execute

    def watch(step):
        computed.append(sum(count for count in step.num_scheduled_tokens if count > 1))
        return execute(step)

    engine.executor.execute = watch
    return engine, computed


def test_a_shared_prefix_is_computed_once(watched, make_request):
    engine, computed = watched
    engine.add_request(make_request("one", ONE))
    engine.add_request(make_request("two", TWO))
    found = drain(engine)
    assert sum(computed) == len(ONE) + 2
    assert found["two", 0][0].num_cached_tokens == 100
    assert tokens(found["one", 0]) == expected(ONE, 8)
    assert tokens(found["two", 0]) == expected(TWO, 8)


def test_who_waits_leaves_the_whole_step_to_whom_it_waits_for(watched, make_request):
    engine, computed = watched
    engine.add_request(make_request("one", ONE))
    engine.add_request(make_request("two", TWO))
    engine.step()
    engine.step()
    assert set(computed) == {32}


def test_nobody_else_waits(make_engine, make_request):
    engine = make_engine()
    engine.add_request(make_request("one", ONE))
    engine.add_request(make_request("two", TWO))
    engine.add_request(make_request("other", [95] * 8, max_tokens=1))
    first = next(output for _ in range(9) for output in engine.step())
    assert first.request_id == "other"


@pytest.mark.parametrize("settings", [{"cache_salt": "own"}, {"prompt_logprobs": 0}, {"priority": -1}])
def test_who_may_not_share_or_goes_first_does_not_wait(make_engine, make_request, settings):
    engine = make_engine()
    engine.add_request(make_request("one", ONE))
    engine.step()
    engine.add_request(make_request("two", TWO, **settings))
    engine.step()
    assert engine.scheduler.num_waiting == 0
    assert tokens(drain(engine)["two", 0]) == expected(TWO, 8)


def test_little_in_common_is_not_waited_for(make_engine, make_request):
    engine = make_engine()
    engine.add_request(make_request("one", ONE))
    engine.add_request(make_request("two", [*PREFIX[:40], *range(200, 260)]))
    engine.step()
    assert engine.scheduler.num_waiting == 0


def test_when_the_first_one_ends_the_next_goes_on_where_it_was(watched, make_request):
    engine, computed = watched
    for name, prompt in (("one", ONE), ("two", TWO), ("three", [*TWO, 96])):
        engine.add_request(make_request(name, prompt))
    engine.step()
    engine.step()
    engine.abort("one")
    found = drain(engine)
    assert sum(computed) < len(ONE) + 48
    assert tokens(found["two", 0]) == expected(TWO, 8)
    assert tokens(found["three", 0]) == expected([*TWO, 96], 8)


def test_who_ends_while_it_waits_is_gone(make_engine, make_request):
    engine = make_engine()
    engine.add_request(make_request("one", ONE))
    for i in range(5):
        engine.add_request(make_request(f"two{i}", TWO))
    engine.step()
    assert engine.scheduler.num_waiting == 5
    for i in range(5):
        engine.abort(f"two{i}")
    assert engine.scheduler.num_waiting == 0
    assert tokens(drain(engine)["one", 0]) == expected(ONE, 8)


def test_without_a_prefix_cache_nobody_waits(make_engine, make_request):
    engine = make_engine(enable_prefix_caching=False)
    engine.add_request(make_request("one", ONE))
    engine.add_request(make_request("two", TWO))
    engine.step()
    assert engine.scheduler.num_waiting == 0
