"""Engine over the fake executor: what comes out, in every way a request can run and end."""

from __future__ import annotations

from collections import defaultdict

import pytest

from octavo.config import EngineConfig
from octavo.core.scheduler import Scheduler
from octavo.engine import Engine
from octavo.errors import InvalidRequest, PromptTooLong
from octavo.outputs import EngineOutput, FinishReason
from octavo.sampling_params import child_seed
from octavo.testing import FakeModelRunner, fake_token

PROMPT = list(range(1, 22))


def drain(engine, outputs=None):
    """Steps until the engine has no work; returns the outputs by (request, child)."""
    found: dict[tuple[str, int], list[EngineOutput]] = outputs if outputs is not None else defaultdict(list)
    while engine.has_work:
        for output in engine.step():
            found[output.request_id, output.index].append(output)
    return found


def tokens(outputs):
    return [token for output in outputs for token in output.token_ids]


def expected(prompt, count, seed=7, index=0):
    known = list(prompt)
    for _ in range(count):
        known.append(fake_token(known, child_seed(seed, index)))
    return known[len(prompt) :]


def test_tokens_do_not_depend_on_batch_mates_or_chunks(make_engine, make_request):
    engine = make_engine()
    for i in range(6):
        engine.add_request(make_request(f"r{i}", PROMPT[: 5 + 3 * i] * 3, max_tokens=10 + i))
    found = drain(engine)
    for i in range(6):
        assert tokens(found[f"r{i}", 0]) == expected(PROMPT[: 5 + 3 * i] * 3, 10 + i)
        assert [o.finish_reason for o in found[f"r{i}", 0] if o.finish_reason] == [FinishReason.LENGTH]


def test_a_second_request_reads_the_prefix_cache(make_engine, make_request):
    engine = make_engine()
    engine.add_request(make_request("a", PROMPT, max_tokens=4))
    drain(engine)
    engine.add_request(make_request("b", PROMPT, max_tokens=4))
    found = drain(engine)
    assert found["b", 0][0].num_cached_tokens == 20  # five full blocks of four
    assert tokens(found["b", 0]) == expected(PROMPT, 4)
    assert engine.stats().prefix_cache_hits_total == 20


def test_a_prompt_whose_logprobs_are_asked_for_takes_small_steps(make_request):
    config = EngineConfig(block_size=4, max_model_len=2000, max_num_seqs=2, max_num_batched_tokens=1000)
    engine = Engine(config, FakeModelRunner(600, 4))
    engine.add_request(make_request("plain", [1] * 900, max_tokens=1))
    engine.add_request(make_request("asks", [2] * 900, max_tokens=1, prompt_logprobs=0))
    scheduled = []
    execute = engine.executor.execute
    engine.executor.execute = lambda step: scheduled.append(step.num_scheduled_tokens) or execute(step)
    while engine.has_work:
        engine.step()
    assert scheduled == [[900, 100], [256], [256], [256], [32]]


def test_cache_salts_and_prompt_logprobs_do_not_read_the_cache(make_engine, make_request):
    engine = make_engine()
    engine.add_request(make_request("a", PROMPT, max_tokens=2))
    drain(engine)
    engine.add_request(make_request("b", PROMPT, max_tokens=2, cache_salt="other"))
    engine.add_request(make_request("c", PROMPT, max_tokens=2, prompt_logprobs=0))
    found = drain(engine)
    assert found["b", 0][0].num_cached_tokens == found["c", 0][0].num_cached_tokens == 0
    assert [p[0].token_id for p in found["c", 0][0].prompt_logprobs] == PROMPT[1:]


def test_prefix_caching_can_be_off(make_engine, make_request):
    engine = make_engine(enable_prefix_caching=False)
    for name in "ab":
        engine.add_request(make_request(name, PROMPT, max_tokens=2))
        assert drain(engine)[name, 0][0].num_cached_tokens == 0


def test_children_share_the_prompts_blocks_and_differ(make_engine, make_request):
    engine = make_engine()
    engine.add_request(make_request("a", PROMPT, n=4, max_tokens=6))
    most = 0
    found = defaultdict(list)
    while engine.has_work:
        for output in engine.step():
            found[output.request_id, output.index].append(output)
        most = max(most, engine.scheduler.kv.pool.num_used)
    for index in range(4):
        assert tokens(found["a", index]) == expected(PROMPT, 6, index=index)
    assert most <= 5 + 4 * 2  # five shared prompt blocks, and two of its own for each child


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9])
def test_children_of_prompts_around_a_block_boundary(make_engine, make_request, length):
    engine = make_engine(enable_prefix_caching=False)
    engine.add_request(make_request("a", PROMPT[:length], n=3, max_tokens=5))
    found = drain(engine)
    for index in range(3):
        assert tokens(found["a", index]) == expected(PROMPT[:length], 5, index=index)


def test_stop_tokens_end_a_sequence_once_min_tokens_are_out(make_engine, make_request):
    output = expected(PROMPT, 12)
    stop = output[3]
    engine = make_engine()
    engine.add_request(make_request("a", PROMPT, max_tokens=12, stop_token_ids=(stop,)))
    first = output.index(stop) + 1
    found = drain(engine)["a", 0]
    assert tokens(found) == output[:first]
    assert (found[-1].finish_reason, found[-1].stop_token_id) == (FinishReason.STOP, stop)
    engine.add_request(make_request("b", PROMPT, max_tokens=12, min_tokens=first + 1, stop_token_ids=(stop,)))
    assert tokens(drain(engine)["b", 0])[:first] == output[:first]
    assert len(tokens(drain(engine)["b", 0])) == 0


@pytest.mark.parametrize("steps", [0, 1, 3, 8])
def test_abort_wherever_it_is(make_engine, make_request, steps):
    engine = make_engine(max_num_seqs=2, max_num_batched_tokens=8)
    for i in range(4):
        engine.add_request(make_request(f"r{i}", PROMPT, max_tokens=30))
    found = defaultdict(list)
    for _ in range(steps):
        for output in engine.step():
            found[output.request_id, output.index].append(output)
    engine.abort("r0")
    engine.abort("r3", reason=FinishReason.DEADLINE)
    engine.abort("unknown")
    drain(engine, found)
    assert [found[f"r{i}", 0][-1].finish_reason.value for i in range(4)] == [
        "cancelled",
        "length",
        "length",
        "deadline",
    ]
    assert all(sum(o.finish_reason is not None for o in outputs) == 1 for outputs in found.values())
    assert engine.scheduler.kv.pool.num_used == 0
    engine.scheduler.kv.pool.check_invariants()


def test_one_child_can_be_aborted(make_engine, make_request):
    engine = make_engine()
    engine.add_request(make_request("a", PROMPT, n=3, max_tokens=6))
    engine.abort("a", index=0)
    engine.abort("a", index=2)
    found = drain(engine)
    assert found["a", 0][-1].finish_reason is FinishReason.CANCELLED
    assert tokens(found["a", 1]) == expected(PROMPT, 6, index=1)


def test_a_pool_that_is_too_small_preempts_and_loses_nothing(make_engine, make_request):
    engine = make_engine(num_blocks=16)
    for i in range(8):
        engine.add_request(make_request(f"r{i}", PROMPT[i:], max_tokens=24))
    found = drain(engine)
    for i in range(8):
        assert tokens(found[f"r{i}", 0]) == expected(PROMPT[i:], 24)
    assert engine.stats().preemptions_total > 0


def test_better_priority_overtakes_and_preempts(make_engine, make_request):
    engine = make_engine(max_num_seqs=1)
    engine.add_request(make_request("low", PROMPT, max_tokens=40, priority=5))
    for _ in range(5):
        engine.step()
    engine.add_request(make_request("high", PROMPT[::-1], max_tokens=3, priority=-1))
    ended = []
    while engine.has_work:
        ended += [o.request_id for o in engine.step() if o.finish_reason]
    assert ended == ["high", "low"]


def test_a_long_prompt_does_not_hold_up_a_short_one(make_engine, make_request):
    engine = make_engine()
    engine.add_request(make_request("long", PROMPT * 10, max_tokens=2))
    engine.step()
    engine.add_request(make_request("short", PROMPT[:8], max_tokens=2))
    first = [o.request_id for _ in range(3) for o in engine.step()]
    assert first[:2] == ["short", "short"]


def test_replay_goes_on_exactly_where_it_stopped(make_engine, make_request):
    whole = expected(PROMPT, 10)
    engine = make_engine()
    request = make_request("a", PROMPT, max_tokens=10, emitted_token_ids=[whole[:6]])
    engine.add_request(request)
    assert tokens(drain(engine)["a", 0]) == whole[6:]


def test_replay_skips_children_that_had_ended(make_engine, make_request):
    emitted = [expected(PROMPT, 4, index=0), expected(PROMPT, 2, index=1), []]
    engine = make_engine()
    request = make_request("a", PROMPT, n=3, max_tokens=4, emitted_token_ids=emitted, finished=[True, False, False])
    engine.add_request(request)
    found = drain(engine)
    assert ("a", 0) not in found
    assert tokens(found["a", 1]) == expected(PROMPT, 4, index=1)[2:]
    assert tokens(found["a", 2]) == expected(PROMPT, 4, index=2)


@pytest.mark.parametrize(("num_emitted", "context", "most"), [(8, 256, 8), (9, 256, 8), (3, 24, 3)])
def test_a_replay_that_may_have_no_further_token_is_refused(make_engine, make_request, num_emitted, context, most):
    engine = make_engine(max_model_len=context)
    emitted = [PROMPT[:1], PROMPT[:num_emitted]]
    with pytest.raises(PromptTooLong, match=rf"{num_emitted} tokens of output .*child 1.* at most {most} .* 21 tokens"):
        engine.add_request(make_request("a", PROMPT, n=2, emitted_token_ids=emitted, finished=[False, False]))
    assert not engine.has_work


def test_what_can_never_run_is_refused_with_both_numbers(make_engine, make_request):
    engine = make_engine(num_blocks=9)
    with pytest.raises(PromptTooLong, match=r"300 tokens.*256"):
        engine.add_request(make_request("a", list(range(300))))
    with pytest.raises(PromptTooLong, match=r"need 12 KV blocks.*has 8"):
        engine.add_request(make_request("b", PROMPT, max_tokens=26))
    with pytest.raises(InvalidRequest, match="prompt"):
        engine.add_request(make_request("c", []))
    engine.add_request(make_request("d", PROMPT, max_tokens=12))
    with pytest.raises(InvalidRequest, match="request_id"):
        engine.add_request(make_request("d", PROMPT))
    assert tokens(drain(engine)["d", 0]) == expected(PROMPT, 12)


def test_output_is_limited_by_the_context(make_engine, make_request):
    engine = make_engine(max_model_len=24)
    engine.add_request(make_request("a", PROMPT, max_tokens=100))
    assert tokens(drain(engine)["a", 0]) == expected(PROMPT, 3)


def test_steps_may_overlap(make_engine, make_request):
    """Two steps in flight: the second is scheduled before the first one's tokens are known."""
    engine = make_engine(num_blocks=20)
    for i in range(6):
        engine.add_request(make_request(f"r{i}", PROMPT[i:], max_tokens=9, n=1 + (i == 2) * 2))
    found = defaultdict(list)
    scheduler: Scheduler = engine.scheduler
    in_flight = []
    aborted = False
    while engine.has_work:
        step = scheduler.schedule()
        if step is not None:
            in_flight.append((step, engine.executor.execute(step)))
        if not aborted and scheduler.num_in_flight == 2:
            engine.abort("r1")
            aborted = True
        if in_flight and (step is None or len(in_flight) == 2):
            engine._update(*in_flight.pop(0))
        outputs, engine._outbox = engine._outbox, []
        for output in outputs:
            found[output.request_id, output.index].append(output)
    while in_flight:
        engine._update(*in_flight.pop(0))
    for (name, index), outputs in found.items():
        if name == "r1":
            assert outputs[-1].finish_reason is FinishReason.CANCELLED
        else:
            assert tokens(outputs) == expected(PROMPT[int(name[1:]) :], 9, index=index)
    assert len(found) == 8
    assert scheduler.kv.pool.num_used == 0


def test_what_a_failed_sequence_computed_is_not_found_in_the_cache(make_engine, make_request, monkeypatch):
    engine = make_engine(max_num_batched_tokens=8, long_prefill_token_threshold=8)
    execute = engine.executor.execute

    def fail_where_it_samples(step):
        output = execute(step)
        failed = {i: "not finite" for i, tokens in enumerate(output.sampled_token_ids) if tokens}
        output.failed.update(failed)
        for i in failed:
            output.sampled_token_ids[i] = []
        return output

    monkeypatch.setattr(engine.executor, "execute", fail_where_it_samples)
    engine.add_request(make_request("bad", PROMPT))
    assert drain(engine)["bad", 0][-1].finish_reason is FinishReason.ERROR
    monkeypatch.setattr(engine.executor, "execute", execute)
    engine.add_request(make_request("good", PROMPT))
    found = drain(engine)["good", 0]
    assert found[0].num_cached_tokens == 0
    assert tokens(found) == expected(PROMPT, 8)


def test_requests_cancelled_behind_a_queue_that_stands_still_do_not_pile_up(make_engine, make_request):
    engine = make_engine(max_num_seqs=1)
    engine.add_request(make_request("running", PROMPT, max_tokens=100))
    engine.step()
    for i in range(1000):
        engine.add_request(make_request(f"r{i}", PROMPT))
        engine.abort(f"r{i}")
    assert len(engine.scheduler._waiting) <= 2
    assert engine.scheduler.num_waiting == 0


def test_children_are_admitted_by_what_they_do_not_share(make_engine, make_request):
    """Ten shared prompt blocks and three more for each of four children fit into 24 blocks; four times 13 do not."""
    engine = make_engine(num_blocks=25, max_num_batched_tokens=64, long_prefill_token_threshold=64)
    engine.add_request(make_request("a", PROMPT + PROMPT, n=4, max_tokens=8))
    most = 0
    found = defaultdict(list)
    while engine.has_work:
        for output in engine.step():
            found[output.request_id, output.index].append(output)
        most = max(most, len(engine.scheduler.running))
    assert most == 4
    assert all(tokens(found["a", index]) == expected(PROMPT + PROMPT, 8, index=index) for index in range(4))


def test_the_context_is_cut_to_what_the_cache_holds(fake_model):
    config = EngineConfig(
        model=str(fake_model), executor="octavo.testing:create_fake_executor", num_gpu_blocks_override=9, block_size=4
    )
    assert Engine.from_config(config).config.max_model_len == 33
