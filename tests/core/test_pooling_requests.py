"""Requests for a vector, through scheduler and engine over the fake executor: one output each, and no token."""

from __future__ import annotations

import struct

import pytest

from octavo.config import EngineConfig
from octavo.core.step import ModelRunnerOutput, SchedulerOutput
from octavo.engine import Engine
from octavo.errors import InvalidRequest, PromptTooLong
from octavo.outputs import FinishReason
from octavo.pooling import Pooling, PoolingKind
from octavo.sampling_params import child_seed
from octavo.testing import FakeModelRunner, fake_embedding, fake_token

LAST = Pooling(PoolingKind.LAST, normalize=True)
PROMPT = list(range(1, 60))


def step(engine, found):
    for output in engine.step():
        found.setdefault(output.request_id, []).append(output)


def drain(engine, found=None):
    """Steps until there is no work left; returns the outputs by request."""
    found = {} if found is None else found
    while engine.has_work:
        step(engine, found)
    return found


def vector(output):
    return list(struct.unpack("<8f", output.embedding))


class Watched(FakeModelRunner):
    """Remembers how many tokens each row got in each step."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size, strict=True)
        self.steps: list[list[int]] = []

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        if step.rows:
            self.steps.append(step.num_scheduled_tokens)
        return super().execute(step)


@pytest.fixture
def encoder(async_scheduling):
    """(an engine whose prompts are computed whole, at most 32 tokens a step; its executor)"""
    config = EngineConfig(
        block_size=4, max_model_len=32, max_num_seqs=8, max_num_batched_tokens=32, long_prefill_token_threshold=5,
        enable_prefix_caching=False, async_scheduling=async_scheduling,
    )  # fmt: skip
    executor = Watched(64, 4)
    return Engine(config, executor, is_encoder=True), executor


def test_the_vector_comes_once_with_the_end(make_engine, make_request):
    engine = make_engine()
    engine.add_request(make_request("a", PROMPT, pooling=LAST, max_tokens=1))
    (output,) = drain(engine)["a"]
    assert vector(output) == fake_embedding(PROMPT)
    assert output.finish_reason is FinishReason.STOP
    assert output.token_ids == []
    assert output.scheduled_at is not None
    stats = engine.stats()
    assert (stats.prompt_tokens_total, stats.generation_tokens_total) == (len(PROMPT), 0)
    assert stats.finished_total == {"stop": 1}
    assert stats.num_free_blocks == stats.num_blocks


def test_among_streams_neither_changes_the_other(make_engine, make_request):
    engine, found = make_engine(), {}
    for i in range(3):
        engine.add_request(make_request(f"stream {i}", PROMPT[: 9 + i], max_tokens=30))
        engine.add_request(make_request(f"vector {i}", PROMPT[i:], pooling=LAST, max_tokens=1))
        step(engine, found)
    drain(engine, found)
    for i in range(3):
        known = PROMPT[: 9 + i]
        for _ in range(30):
            known.append(fake_token(known, child_seed(7, 0)))
        assert [token for output in found[f"stream {i}"] for token in output.token_ids] == known[9 + i :]
        assert [vector(output) for output in found[f"vector {i}"]] == [fake_embedding(PROMPT[i:])]


def test_it_reads_the_prefix_cache(make_engine, make_request):
    engine = make_engine()
    engine.add_request(make_request("a", PROMPT, pooling=LAST, max_tokens=1))
    drain(engine)
    engine.add_request(make_request("b", PROMPT, pooling=LAST, max_tokens=1))
    (output,) = drain(engine)["b"]
    assert output.num_cached_tokens == 56  # fourteen full blocks of four
    assert vector(output) == fake_embedding(PROMPT)


def test_a_preempted_one_is_computed_again(make_engine, make_request):
    engine = make_engine(num_blocks=18, max_num_batched_tokens=16)
    engine.add_request(make_request("a", PROMPT, pooling=LAST, max_tokens=1, priority=1))
    engine.step()
    engine.add_request(make_request("b", PROMPT[::-1], pooling=LAST, max_tokens=1, priority=0))
    found = drain(engine)
    assert engine.stats().preemptions_total >= 1
    assert [vector(output) for output in found["a"]] == [fake_embedding(PROMPT)]
    assert [vector(output) for output in found["b"]] == [fake_embedding(PROMPT[::-1])]


def test_the_prompt_may_be_as_long_as_the_context(make_engine, make_request):
    engine = make_engine(max_model_len=59)
    engine.add_request(make_request("a", PROMPT, pooling=LAST, max_tokens=1))
    assert vector(drain(engine)["a"][0]) == fake_embedding(PROMPT)
    with pytest.raises(PromptTooLong, match=r"60 tokens.* 59"):
        engine.add_request(make_request("b", [*PROMPT, 1], pooling=LAST, max_tokens=1))
    with pytest.raises(InvalidRequest, match="prompt"):
        engine.add_request(make_request("c", [], pooling=LAST, max_tokens=1))


def test_one_that_no_kv_cache_can_hold_is_refused(make_engine, make_request):
    engine = make_engine(num_blocks=8)
    with pytest.raises(PromptTooLong, match=r"15 KV blocks.* 7") as caught:
        engine.add_request(make_request("a", PROMPT, pooling=LAST, max_tokens=1))
    assert "max_tokens" not in str(caught.value)


def test_every_token_of_a_prompt_needs_a_slot(fake_model):
    config = EngineConfig(
        model=str(fake_model), executor="octavo.testing:create_fake_executor", runner="pooling",
        num_gpu_blocks_override=9, block_size=4,
    )  # fmt: skip
    assert Engine.from_config(config).config.max_model_len == 32


@pytest.mark.parametrize(("runner", "beside"), [("pooling", [31]), ("generate", [])])
def test_no_prompt_waits_for_the_last_token_of_another_where_nobody_streams(
    async_scheduling, make_request, runner, beside
):
    config = EngineConfig(
        block_size=4, max_model_len=64, max_num_seqs=8, max_num_batched_tokens=32, long_prefill_token_threshold=16,
        async_scheduling=async_scheduling, runner=runner,
    )  # fmt: skip
    executor = Watched(64, 4)
    engine = Engine(config, executor)
    engine.add_request(make_request("a", PROMPT[:17], pooling=LAST, max_tokens=1))
    engine.add_request(make_request("b", PROMPT[::-1], pooling=LAST, max_tokens=1))
    drain(engine)
    assert executor.steps[:2] == [[16, 16], [1, *beside]]


def test_an_aborted_one_brings_no_vector(make_engine, make_request):
    engine = make_engine(max_num_batched_tokens=8)
    engine.add_request(make_request("a", PROMPT, pooling=LAST, max_tokens=1))
    engine.step()
    engine.abort("a")
    (output,) = drain(engine)["a"]
    assert (output.finish_reason, output.embedding) == (FinishReason.CANCELLED, None)
    assert engine.stats().num_free_blocks == engine.stats().num_blocks


def test_prompts_of_an_encoder_are_never_cut(encoder, make_request):
    engine, executor = encoder
    lengths = [20, 12, 1, 31, 32, 7, 7, 7, 7, 7, 7]
    for i, length in enumerate(lengths):
        engine.add_request(make_request(f"r{i}", PROMPT[:length], pooling=LAST, max_tokens=1))
    found = drain(engine)
    assert [vector(found[f"r{i}"][0]) for i in range(len(lengths))] == [fake_embedding(PROMPT[:n]) for n in lengths]
    # As many as fit the budget of 32 tokens, in the order in which they came: nobody is overtaken.
    assert executor.steps == [[20, 12], [1, 31], [32], [7, 7, 7, 7], [7, 7]]


def test_an_encoder_waits_for_blocks(async_scheduling, make_request):
    config = EngineConfig(
        block_size=4, max_model_len=32, max_num_seqs=8, max_num_batched_tokens=64, enable_prefix_caching=False,
        async_scheduling=async_scheduling,
    )  # fmt: skip
    engine, found = Engine(config, Watched(10, 4), is_encoder=True), {}
    for i in range(6):
        engine.add_request(make_request(f"r{i}", PROMPT[i : i + 30], pooling=LAST, max_tokens=1, priority=-i))
        step(engine, found)
    drain(engine, found)
    assert all(vector(found[f"r{i}"][-1]) == fake_embedding(PROMPT[i : i + 30]) for i in range(6))
