"""The runner of devices that return late, on one that does: the same answers as those of the CPU's runner."""

import re
from contextlib import ExitStack
from unittest.mock import patch

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from kernels.triton_support import interpreted
from runner.fake_device import FakeDevice

from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig, resolve
from octavo.engine import Engine
from octavo.models import load_model
from octavo.outputs import FinishReason
from octavo.pooling import Pooling, PoolingKind
from octavo.request import EngineRequest
from octavo.runner import create_executor_for, layout_of
from octavo.runner.device_start import start_on_device
from octavo.sampling_params import SamplingParams
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

pytestmark = pytest.mark.slow

VOCAB_SIZE = 512


def on_gpu(answer=True):
    """The way of a GPU, or not, for every operation."""
    return patch("octavo.kernels.language.on_gpu", lambda tensor: answer)


@pytest.fixture(scope="module")
def checkpoint(tiny_llama):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield open_checkpoint(tiny_llama[0])
    torch.set_num_threads(threads)


def load(checkpoint):
    return load_model(checkpoint, torch.float32, torch.device("cpu"), lambda phase, fraction: None)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(checkpoint)


@pytest.fixture
def engines(checkpoint, model):
    """Makes (an engine on a late device, its executor, one on the CPU), with the same settings."""
    with ExitStack() as stack:

        def make(device=None, gpu_model=None, **settings):
            defaults = {"block_size": 4, "max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 24}
            defaults |= {"num_gpu_blocks_override": 64, "num_threads": 1}
            config = resolve(EngineConfig(**(defaults | settings)), checkpoint)
            on_cpu = Engine(config, create_executor_for(model, config, torch.device("cpu"), torch.float32))
            stack.enter_context(interpreted())
            # Kernels divide 0 by 0 in rows that only pad, and do not look at what comes of it.
            stack.enter_context(np.errstate(all="ignore"))
            layout = layout_of(model.spec, config, torch.float32)
            with on_gpu(gpu_model is not None):
                parts = (gpu_model or model, layout, config, device or FakeDevice())
                runner = start_on_device(*parts, lambda phase, fraction: None)
            return Engine(config, runner), runner, on_cpu

        yield make


def request(request_id, prompt, **params):
    own = {
        name: params.pop(name) for name in ("stop_token_ids", "end_token_ids", "bad_words_token_ids") if name in params
    }
    params = SamplingParams(**({"max_tokens": 6} | params))
    return EngineRequest(request_id=request_id, prompt_token_ids=prompt, params=params, seed=11, **own)


def answers(engine, requests):
    """(tokens, reasons, logprobs) by request and child; aborts none."""
    for each in requests:
        engine.add_request(each)
    found = {}
    while engine.has_work:
        for output in engine.step():
            tokens, logprobs, ends = found.setdefault((output.request_id, output.index), ([], [], []))
            tokens += output.token_ids
            logprobs += output.logprobs or []
            logprobs += output.prompt_logprobs or []
            ends += [output.finish_reason] if output.finish_reason else []
    return found


def vectors(engine, prompts, streams=()):
    """The vector of each prompt, fp32, made while `streams` get their tokens."""
    for each in streams:
        engine.add_request(each)
    parts = {"params": SamplingParams(max_tokens=1), "seed": 0, "pooling": Pooling(PoolingKind.LAST, normalize=True)}
    for i, prompt in enumerate(prompts):
        engine.add_request(EngineRequest(request_id=f"vector {i}", prompt_token_ids=prompt, **parts))
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert {output.request_id for output in outputs if output.token_ids} == {each.request_id for each in streams}
    found = {output.request_id: output.embedding for output in outputs if output.embedding is not None}
    return [np.frombuffer(found[f"vector {i}"], "<f4") for i in range(len(prompts))]


def assert_equal(found, expected):
    assert {key: (tokens, ends) for key, (tokens, _, ends) in found.items()} == {
        key: (tokens, ends) for key, (tokens, _, ends) in expected.items()
    }
    for key, (_, logprobs, _) in expected.items():
        assert len(found[key][1]) == len(logprobs)
        for mine, theirs in zip(found[key][1], logprobs, strict=True):
            assert [entry.token_id for entry in mine] == [entry.token_id for entry in theirs]
            assert [entry.rank for entry in mine] == [entry.rank for entry in theirs]
            assert [entry.logprob for entry in mine] == pytest.approx([entry.logprob for entry in theirs], abs=1e-4)


MIXED = [
    request("greedy", list(range(5, 40)), temperature=0),
    request("drawn", [7, 8, 9], temperature=0.9, logprobs=3),
    request("narrow", [3] * 17, temperature=0.7, top_k=20, top_p=0.9, max_tokens=9),
    request("penalised", [1, 2, 3, 4], temperature=0, repetition_penalty=1.5, frequency_penalty=0.5, max_tokens=9),
    request("twins", list(range(60, 71)), temperature=1.0, n=2, max_tokens=5),
    request("not yet", [8] * 5, temperature=0.9, min_tokens=4, max_tokens=9, stop_token_ids=tuple(range(0, 512, 2))),
    request("masked", [9, 9], temperature=0, allowed_token_ids=(4, 5, 6), bad_words_token_ids=[[4], [5, 6]]),
]


def test_answers_are_those_of_the_cpu_whatever_is_asked(engines):
    late, _, on_cpu = engines()
    assert_equal(answers(late, MIXED), answers(on_cpu, MIXED))
    assert late.stats().fallbacks_total == 0, "a decode step ran without its graph"
    assert late.scheduler.kv.pool.num_used == 0


def test_vectors_among_streams_are_those_of_the_cpu(engines):
    late, _, on_cpu = engines()
    prompts = [[5], list(range(1, 51)), *([i, *range(9)] for i in range(20))]
    streams = [request(f"stream {i}", prompt[:7], temperature=0) for i, prompt in enumerate(prompts)]
    found, expected = vectors(late, prompts, streams), vectors(on_cpu, prompts, streams)
    assert len(found) == len(expected) == len(prompts)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
        assert np.linalg.norm(mine) == pytest.approx(1, abs=1e-6)
    for prompt, vector in zip(prompts, expected, strict=True):
        assert vectors(on_cpu, [prompt])[0].tobytes() == vector.tobytes(), "not the same bits alone and among streams"


def test_texts_that_follow_a_grammar_are_those_of_the_cpu(engines):
    late, _, on_cpu = engines()
    vocabulary = Vocabulary([bytes([token % 256]) for token in range(VOCAB_SIZE)], [2])
    choice = StructuredOutputs("choice", '["red", "green", "blue"]')
    follow = {"structured_outputs": StructuredOutputs("regex", "[a-f]{4}[0-9]+"), "max_tokens": 12}
    asked = [
        request("greedy", [5, 6, 7], temperature=0, end_token_ids=(2,), **follow),
        request("drawn", [7] * 9, n=3, logprobs=2, end_token_ids=(2,), **follow),
        request("on the host", [8], logprobs=40, end_token_ids=(2,), **follow),
        request("ends", [9, 9], structured_outputs=choice, end_token_ids=(2,), min_tokens=6, max_tokens=8),
        request("narrow", [9, 8], allowed_token_ids=(97, 98, 2, 50), bad_words_token_ids=[[98]], **follow),
        request("plain", [1, 2, 3], max_tokens=12),
    ]
    for engine in (late, on_cpu):
        engine.gate.use(vocabulary)
    found = answers(late, asked)
    assert_equal(found, answers(on_cpu, asked))
    for engine in (late, on_cpu):
        engine.shutdown()
    written = {
        name: bytes(vocabulary.tokens[token][0] for token in tokens) for (name, _), (tokens, *_) in found.items()
    }
    assert re.fullmatch(rb"[a-f]{4}[0-9]{8}", written["greedy"])
    assert written["ends"].rstrip(b"\x02") in (b"red", b"green", b"blue")
    assert re.fullmatch(rb"a{4}2{8}", written["narrow"])


def test_answers_stay_the_same_when_sequences_are_preempted(engines):
    late, _, on_cpu = engines(num_gpu_blocks_override=17, enable_prefix_caching=False)
    asked = [request(f"r{i}", [i + 1] * (6 + i), temperature=0.8, max_tokens=14) for i in range(4)]
    assert_equal(answers(late, asked), answers(on_cpu, asked))
    assert late.scheduler.num_preemptions


def test_what_the_tables_do_not_hold_is_drawn_on_the_host_and_counted(engines):
    late, _, on_cpu = engines()
    asked = [
        request("all", [5, 6], temperature=0.5, logprobs=-1, max_tokens=2),
        request("prompt", list(range(100, 130)), temperature=0, prompt_logprobs=2, max_tokens=2),
        request("beside", [8], temperature=0.5, max_tokens=4),
    ]
    assert_equal(answers(late, asked), answers(on_cpu, asked))
    assert late.stats().fallbacks_total == 2


def test_a_request_is_aborted_while_its_step_is_on_its_way(engines):
    late, _, on_cpu = engines()
    stays = request("stays", [4, 4, 4], temperature=0.6)
    late.add_request(request("gone", [5] * 9, temperature=0.6, max_tokens=40))
    late.add_request(stays)
    late.step()
    late.step()
    late.abort("gone")
    outputs = []
    while late.has_work:
        outputs += late.step()
    # Both steps before the abort may have brought tokens of "stays" already.
    tokens = [token for output in outputs if output.request_id == "stays" for token in output.token_ids]
    expected = answers(on_cpu, [stays])["stays", 0][0]
    assert tokens == expected[len(expected) - len(tokens) :]
    assert tokens
    assert [o.finish_reason for o in outputs if o.request_id == "gone"] == [FinishReason.CANCELLED]
    assert late.scheduler.kv.pool.num_used == 0


def test_a_row_whose_numbers_are_not_finite_fails_alone(engines):
    late, runner, _ = engines()
    embedding = runner._work.model.embedding
    broken = embedding.table.clone()
    broken[77] = float("nan")
    with patch.object(embedding, "table", broken):
        found = answers(late, [request("bad", [1, 77], temperature=0), request("good", [2, 3], temperature=0)])
    assert found["bad", 0][2] == [FinishReason.ERROR]
    assert found["good", 0][2] == [FinishReason.LENGTH]


def test_without_memory_for_graphs_steps_run_all_the_same_and_are_counted(engines):
    late, _, on_cpu = engines(device=FakeDevice(max_graphs=1))
    asked = [request(f"r{i}", [i + 3, 5], temperature=0, max_tokens=4) for i in range(3)]
    assert_equal(answers(late, asked), answers(on_cpu, asked))
    assert late.stats().fallbacks_total > 1


def test_under_load_from_the_first_second_on_graphs_are_captured_all_the_same(engines, monkeypatch):
    monkeypatch.setattr("octavo.runner.device_runner._SIZES_AT_START", 1)
    monkeypatch.setattr("octavo.runner.device_runner._STEPS_BEFORE_CAPTURE", 2)
    late, runner, on_cpu = engines()
    asked = [request(f"r{i}", [i + 3, 5], temperature=0, max_tokens=12) for i in range(3)]
    assert_equal(answers(late, asked), answers(on_cpu, asked))
    # The graph of 4 rows was missing, not that of 2.
    assert late.stats().fallbacks_total == 2
    assert runner.make_ready()
    assert not runner.make_ready()


def test_block_tables_too_long_for_one_copy_take_several(engines, monkeypatch):
    monkeypatch.setattr("octavo.runner.device_runner._STAGED_BLOCKS", 3)
    late, _, on_cpu = engines(max_num_batched_tokens=64)
    asked = [request("long", list(range(1, 50)), temperature=0), request("short", [1, 2, 3], temperature=0)]
    assert_equal(answers(late, asked), answers(on_cpu, asked))


def test_the_gpus_kernels_give_the_same_answers_through_the_whole_model(engines, checkpoint):
    with on_gpu():
        plain = load(checkpoint)
    late, _, on_cpu = engines(gpu_model=plain, max_num_seqs=2, max_num_batched_tokens=6)
    asked = [
        request("greedy", list(range(5, 12)), temperature=0, max_tokens=3),
        request("drawn", [7, 8, 9], temperature=0.9, logprobs=3, max_tokens=4),
    ]
    expected = answers(on_cpu, asked)
    with on_gpu():
        assert_equal(answers(late, asked), expected)
