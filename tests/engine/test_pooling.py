"""Vectors by way of LLM and AsyncEngine over the fake executor: what comes, what is refused, what survives a crash."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo import (
    LLM,
    AsyncEngine,
    DeadlineExceeded,
    FinishReason,
    InvalidRequest,
    PoolingParams,
    PromptTooLong,
    RequestCancelled,
    SamplingParams,
    cosine_similarity,
)
from octavo.testing import fake_embedding

FAKE = "octavo.testing:create_fake_executor"
PACED = "octavo.testing:create_paced_executor"
StartEngine = Callable[..., AsyncEngine]


def expected(text: str) -> list[float]:
    return fake_embedding(list(text.encode()))


@pytest.fixture
def llm(fake_model: Path) -> LLM:
    return LLM(str(fake_model), executor=FAKE, runner="pooling")


@pytest.fixture
def model_with(fake_model: Path, tmp_path: Path) -> Callable[..., str]:
    """A copy of the fake model with more in its config.json."""

    def make(**config: object) -> str:
        folder = tmp_path / "model"
        shutil.copytree(fake_model, folder)
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | config))
        return str(folder)

    return make


def test_vectors_are_in_the_prompts_order(llm: LLM) -> None:
    prompts = [f"prompt {i}" * (i + 1) for i in range(100)]
    assert [vector.tolist() for vector in llm.embed(prompts)] == [expected(prompt) for prompt in prompts]
    assert [vector.tolist() for vector in llm.embed("abc")] == [expected("abc")]
    assert llm.embed([[97, 98, 99]])[0].tolist() == expected("abc")
    assert llm.embed([]) == []


def test_scores_pair_queries_with_documents(llm: LLM) -> None:
    a, b, c = llm.embed(["a", "b", "c"])
    assert llm.score("a", ["b", "c"]) == [cosine_similarity(a, b), cosine_similarity(a, c)]
    assert llm.score(["a", "b"], ["b", "c"]) == [cosine_similarity(a, b), cosine_similarity(b, c)]
    assert llm.score("a", []) == []
    with pytest.raises(InvalidRequest, match="queries"):
        llm.score(["a", "b", "c"], ["a"])


def test_a_model_that_pools_does_not_generate(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"model 'fake' makes embeddings.*does not generate") as caught:
        llm.generate("abc", SamplingParams(max_tokens=3))
    assert caught.value.parameter == "model"


def test_a_model_that_generates_does_not_pool(fake_model: Path) -> None:
    llm = LLM(str(fake_model), executor=FAKE, served_model_name="scribe")
    with pytest.raises(InvalidRequest, match=r"model 'scribe' generates text.*no embeddings") as caught:
        llm.embed("abc")
    assert caught.value.parameter == "model"


def test_prompts_may_be_as_long_as_the_context(fake_model: Path) -> None:
    llm = LLM(str(fake_model), executor=FAKE, runner="pooling", max_model_len=20)
    assert llm.embed("x" * 20)[0].tolist() == expected("x" * 20)
    with pytest.raises(PromptTooLong, match=r"21 tokens.* 20 tokens"):
        llm.embed("x" * 21)
    with pytest.raises(PromptTooLong, match="context of 20"):
        llm.embed("x" * 100_000)
    for limit, length in ((-1, 20), (20, 20), (7, 7)):
        assert llm.embed("x" * 21, PoolingParams(truncate_prompt_tokens=limit))[0].tolist() == expected("x" * length)
    assert llm.embed([[1, 2, 3]], PoolingParams(truncate_prompt_tokens=2))[0].tolist() == fake_embedding([1, 2])


def test_a_prompt_may_fill_the_kv_cache(fake_model: Path) -> None:
    llm = LLM(str(fake_model), executor=FAKE, runner="pooling", block_size=16, num_gpu_blocks_override=5)
    assert llm.embed("x" * 64)[0].tolist() == expected("x" * 64)
    assert llm.embed("x" * 65, PoolingParams(truncate_prompt_tokens=-1))[0].tolist() == expected("x" * 64)
    with pytest.raises(PromptTooLong, match=r"65 tokens.* 64 tokens"):
        llm.embed("x" * 65)


def test_fewer_dimensions_are_for_models_that_were_trained_for_them(model_with: Callable[..., str]) -> None:
    plain = LLM(model_with(hidden_size=8), executor=FAKE, runner="pooling")
    assert plain.embed("abc", PoolingParams(dimensions=8))[0].tolist() == expected("abc")
    with pytest.raises(InvalidRequest, match="dimensions: 4 is not allowed; expected null or 8"):
        plain.embed("abc", PoolingParams(dimensions=4))


@pytest.mark.parametrize(
    ("config", "allowed", "refused"),
    [({"is_matryoshka": True}, 3, 9), ({"is_matryoshka": True, "matryoshka_dimensions": [2, 4]}, 4, 3)],
)
def test_which_dimensions_the_config_allows(model_with, config, allowed, refused) -> None:
    llm = LLM(model_with(hidden_size=8, **config), executor=FAKE, runner="pooling")
    llm.embed("abc", PoolingParams(dimensions=allowed))
    with pytest.raises(InvalidRequest, match=f"dimensions: {refused}"):
        llm.embed("abc", PoolingParams(dimensions=refused))


@pytest.mark.slow
def test_one_output_brings_the_vector_and_the_counts(start_engine: StartEngine) -> None:
    engine = start_engine(runner="pooling")
    assert engine.config.runner == "pooling"
    streams = [engine.submit(f"prompt {i}" * 40, PoolingParams(), priority=i % 3) for i in range(50)]
    for i, stream in enumerate(streams):
        (output,) = stream
        assert output.embedding is not None
        assert output.embedding.tolist() == expected(f"prompt {i}" * 40)
        assert output.finished
        assert output.usage.num_prompt_tokens == len(f"prompt {i}" * 40)
        assert output.usage.num_output_tokens == 0
        assert [(o.text, o.token_ids, o.finish_reason) for o in output.outputs] == [("", [], FinishReason.STOP)]
        assert output.timing is not None
        assert output.timing.e2e_s is not None
        assert output.timing.time_to_first_token_s is None
    stats = engine.stats()
    assert stats.finished_total == {"stop": 50}
    assert stats.histograms is not None
    assert sum(stats.histograms.e2e_s.counts) == sum(stats.histograms.num_prompt_tokens.counts) == 50
    assert sum(stats.histograms.time_to_first_token_s.counts) == 0


@pytest.mark.slow
def test_requests_for_vectors_survive_a_kill(start_engine: StartEngine) -> None:
    engine = start_engine(runner="pooling", executor=PACED, max_num_batched_tokens=64, max_model_len=4096)
    streams = [engine.submit(f"prompt {i}" * 200, PoolingParams()) for i in range(8)]
    first = streams[0].take(30)
    assert first is not None
    assert engine.engine_pid is not None
    os.kill(engine.engine_pid, signal.SIGKILL)
    outputs = [first, *(stream.take(30) for stream in streams[1:])]
    assert [output.embedding.tolist() for output in outputs] == [expected(f"prompt {i}" * 200) for i in range(8)]
    stats = engine.stats()
    assert (stats.engine_restarts_total, stats.finished_total) == (1, {"stop": 8})


@pytest.mark.slow
def test_they_can_be_cancelled_and_have_deadlines(start_engine: StartEngine) -> None:
    engine = start_engine(runner="pooling", executor=PACED, max_num_batched_tokens=16, max_model_len=100_000)
    cancelled = engine.submit("x" * 90_000, PoolingParams())
    late = engine.submit("y" * 90_000, PoolingParams(), deadline_s=0.05)
    with pytest.raises(DeadlineExceeded):
        late.take(30)
    cancelled.cancel()
    with pytest.raises(RequestCancelled):
        cancelled.take(30)
    (output,) = engine.submit("z", PoolingParams())
    assert output.embedding is not None
    with pytest.raises(InvalidRequest, match="does not generate"):
        engine.submit("abc")
