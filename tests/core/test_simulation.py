"""100,000 requests through a pool that is far too small: no block lost, every request ended exactly once."""

from __future__ import annotations

import random

import pytest

from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.outputs import FinishReason
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams, child_seed
from octavo.testing import FakeModelRunner, fake_token

NUM_REQUESTS = 100_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_100000_requests_with_aborts_in_a_pool_that_is_too_small():
    rng = random.Random(1)
    config = EngineConfig(
        block_size=4, max_model_len=64, max_num_seqs=48, max_num_batched_tokens=128, long_prefill_token_threshold=24
    )
    # 48 sequences of 20 tokens on average want about 250 blocks of 4.
    engine = Engine(config, FakeModelRunner(64, config.block_size))
    shared = [[rng.randrange(200) for _ in range(16)] for _ in range(8)]
    lengths: dict[tuple[str, int], int] = {}
    ends: dict[tuple[str, int], FinishReason] = {}
    requests: dict[str, EngineRequest] = {}
    checked = 0
    submitted = 0
    texts: dict[tuple[str, int], list[int]] = {}
    while submitted < NUM_REQUESTS or engine.has_work:
        while submitted < NUM_REQUESTS and len(requests) < 96:
            name = str(submitted)
            prompt = rng.choice(shared)[: rng.randint(1, 16)] + [rng.randrange(200) for _ in range(rng.randint(0, 6))]
            n = 2 if rng.random() < 0.05 else 1
            params = SamplingParams(n=n, max_tokens=min(1 + int(rng.expovariate(0.12)), 36))
            request = EngineRequest(
                request_id=name,
                prompt_token_ids=prompt,
                params=params,
                seed=submitted,
                priority=rng.choice([0, 0, 0, 1]),
            )
            engine.add_request(request)
            requests[name] = request
            for index in range(n):
                lengths[name, index] = 0
                texts[name, index] = []
            submitted += 1
        for output in engine.step():
            key = output.request_id, output.index
            assert key not in ends, "tokens after the end"
            lengths[key] += len(output.token_ids)
            texts[key] += output.token_ids
            if output.finish_reason is None:
                continue
            ends[key] = output.finish_reason
            request = requests[output.request_id]
            if output.finish_reason is FinishReason.LENGTH:
                assert lengths[key] == request.params.max_tokens
            token_ids = texts.pop(key)
            if submitted % 16 == 0:
                known = list(request.prompt_token_ids)
                for token_id in token_ids:
                    assert token_id == fake_token(known, child_seed(request.seed, output.index))
                    known.append(token_id)
                checked += 1
            if all((output.request_id, index) in ends for index in range(request.params.n)):
                del requests[output.request_id]
        if rng.random() < 0.3 and requests:
            engine.abort(rng.choice(list(requests)), rng.choice([None, None, 0]))
    stats = engine.stats()
    assert ends.keys() == lengths.keys()
    assert sum(stats.finished_total.values()) == len(ends)
    assert stats.finished_total["cancelled"] > 1000
    assert stats.preemptions_total > 1000
    assert stats.prefix_cache_hits_total > 10_000
    assert checked > 1000
    engine.scheduler.kv.pool.check_invariants()
    assert stats.num_free_blocks == stats.num_blocks
