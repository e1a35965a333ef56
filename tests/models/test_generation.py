"""The whole engine over tiny real models in fp32: what comes out is transformers' own, however it was scheduled."""

import pytest
import torch
from models.tiny_models import TINY_MODELS

from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams

PROMPTS = [list(range(3, 40)), list(range(3, 30)), [7], list(range(400, 340, -2))]
SEEDED = SamplingParams(temperature=1.0, top_p=0.95, presence_penalty=0.5, max_tokens=40, seed=11)


def start(folder, **settings):
    defaults = {"model": str(folder), "dtype": "float32", "num_threads": 1, "max_num_seqs": 32, "block_size": 8}
    return Engine.from_config(EngineConfig(**(defaults | settings)))


def request(name, prompt, params, emitted=()):
    emitted = [list(emitted)] if emitted else []
    seed = 11 if params.seed is None else params.seed
    return EngineRequest(request_id=name, prompt_token_ids=prompt, params=params, seed=seed, emitted_token_ids=emitted)


def run(engine, requests):
    """Runs the requests to their ends; returns their new tokens by name."""
    found = {each.request_id: [] for each in requests}
    for each in requests:
        engine.add_request(each)
    while engine.has_work:
        for output in engine.step():
            found[output.request_id] += output.token_ids
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY_MODELS)
def test_200_greedy_tokens_equal_transformers_under_chunks_preemption_and_prefix_hits(name, tiny):
    folder, reference = tiny(name)
    # 84 blocks of 8 hold about three of the four sequences at their full length: somebody is preempted.
    engine = start(folder, max_num_batched_tokens=24, long_prefill_token_threshold=16, num_gpu_blocks_override=84)
    params = SamplingParams(temperature=0, max_tokens=200)
    # The kernels count for the whole process: other tests make them fall back on purpose.
    fallbacks = engine.stats().fallbacks_total
    found = run(engine, [request(str(i), prompt, params) for i, prompt in enumerate(PROMPTS)])
    again = run(engine, [request("again", PROMPTS[0], params)])
    stats = engine.stats()
    assert stats.preemptions_total > 0
    assert stats.prefix_cache_hits_total > 0
    assert stats.fallbacks_total == fallbacks
    for i, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            whole = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=200,
                eos_token_id=None,
                pad_token_id=0,
            )[0].tolist()
        assert found[str(i)] == whole[len(prompt) :]
    assert again["again"] == found["0"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_seeded_request_is_the_same_alone_in_a_batch_preempted_and_replayed(dtype, tiny):
    folder, _ = tiny("llama")
    alone = run(start(folder, dtype=dtype), [request("r", PROMPTS[0], SEEDED)])["r"]
    assert len(set(alone)) > 5

    mates = [
        request(
            f"mate{i}", PROMPTS[i % 4] + [i + 3], SamplingParams(temperature=0.7, max_tokens=20 + i, seed=i, top_k=i)
        )
        for i in range(31)
    ]
    batched = start(folder, dtype=dtype, max_num_batched_tokens=64)
    assert run(batched, [*mates, request("r", PROMPTS[0], SEEDED)])["r"] == alone

    # The last to arrive is the first to be preempted.
    crowded = start(folder, dtype=dtype, num_gpu_blocks_override=24)
    assert run(crowded, [*mates[:4], request("r", PROMPTS[0], SEEDED)])["r"] == alone
    assert crowded.stats().preemptions_total > 0

    for emitted in (1, 17, 39):
        replayed = run(start(folder, dtype=dtype), [request("r", PROMPTS[0], SEEDED, alone[:emitted])])["r"]
        assert alone[:emitted] + replayed == alone


@pytest.mark.slow
def test_children_of_one_prompt_are_those_they_would_be_alone(tiny):
    folder, _ = tiny("qwen3")
    engine = start(folder)
    params = SamplingParams(temperature=1.0, max_tokens=12, seed=5, n=4)
    found = {i: [] for i in range(4)}
    engine.add_request(request("r", PROMPTS[1], params))
    while engine.has_work:
        for output in engine.step():
            found[output.index] += output.token_ids
    assert len({tuple(tokens) for tokens in found.values()}) == 4
    first = run(start(folder), [request("s", PROMPTS[1], SamplingParams(temperature=1.0, max_tokens=12, seed=5))])["s"]
    assert found[0] == first
