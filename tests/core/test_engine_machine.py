"""A Hypothesis state machine drives the engine with up to two steps in flight over a shadow KV memory."""

from __future__ import annotations

import struct
from collections import deque

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.errors import PromptTooLong
from octavo.outputs import FinishReason
from octavo.pooling import Pooling, PoolingKind
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams, child_seed
from octavo.testing import FakeModelRunner, fake_embedding, fake_token

# Few different prompts over two tokens, so that prefixes meet all the time.
_LONGEST_PROMPT = 40
prompts = st.lists(st.integers(1, 2), min_size=1, max_size=_LONGEST_PROMPT)


class EngineMachine(RuleBasedStateMachine):
    """Every sequence must end once, with exactly the tokens, or the vector, that it would have had alone."""

    @initialize(
        num_blocks=st.integers(4, 40),
        block_size=st.sampled_from([1, 2, 4]),
        budget=st.integers(1, 24),
        num_seqs=st.integers(1, 6),
        threshold=st.integers(1, 24),
        caching=st.booleans(),
        depth=st.integers(1, 2),
        encoder=st.sampled_from([False, False, True]),
    )
    def start(self, num_blocks, block_size, budget, num_seqs, threshold, caching, depth, encoder):
        if encoder:
            budget, caching = max(budget, _LONGEST_PROMPT), False
        config = EngineConfig(
            block_size=block_size,
            max_model_len=64,
            max_num_seqs=num_seqs,
            max_num_batched_tokens=budget,
            long_prefill_token_threshold=threshold,
            enable_prefix_caching=caching,
        )
        self.engine = Engine(config, FakeModelRunner(num_blocks, block_size, strict=True), is_encoder=encoder)
        self.encoder = encoder
        self.depth = depth
        self.in_flight = deque()
        self.requests = {}
        self.emitted = {}
        self.ended = {}

    @rule(
        prompt=prompts,
        max_tokens=st.integers(1, 20),
        n=st.sampled_from([1, 1, 1, 2, 4]),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "x"]),
        stop=st.booleans(),
        pools=st.sampled_from([False, False, True]),
    )
    def submit(self, prompt, max_tokens, n, priority, salt, stop, pools):
        if pools or self.encoder:
            pools, max_tokens, n, stop = True, 1, 1, False
        if self.encoder:
            # Longer ones, so that a step has no room for the next.
            prompt = (prompt * 4)[:_LONGEST_PROMPT]
        name = f"r{len(self.requests)}"
        # One token of sixteen stops, so that ends are found out late.
        stop_token_ids = tuple(range(32, 127, 16)) if stop else ()
        params = SamplingParams(n=n, max_tokens=max_tokens, stop_token_ids=stop_token_ids)
        request = EngineRequest(
            request_id=name,
            prompt_token_ids=prompt,
            params=params,
            seed=3,
            stop_token_ids=stop_token_ids,
            priority=priority,
            cache_salt=salt,
            pooling=Pooling(PoolingKind.LAST, normalize=False) if pools else None,
        )
        try:
            self.engine.add_request(request)
        except PromptTooLong:
            return
        self.requests[name] = request
        for index in range(n):
            self.emitted[name, index] = []

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data):
        name = data.draw(st.sampled_from(sorted(self.requests)))
        index = data.draw(st.sampled_from([None, 0, 1]))
        self.engine.abort(name, index, data.draw(st.sampled_from([FinishReason.CANCELLED, FinishReason.DEADLINE])))

    @rule()
    def schedule(self):
        if len(self.in_flight) < self.depth:
            step = self.engine.scheduler.schedule()
            if step is not None:
                assert step.num_tokens <= self.engine.config.max_num_batched_tokens
                assert len(set(step.rows)) == len(step.rows) <= self.engine.config.max_num_seqs
                assert not self.encoder or step.num_scheduled_tokens == [len(new.token_ids) for new in step.new_rows]
                touched = {
                    block for seq, _, _ in self.engine.scheduler._in_flight[-1].entries for block in seq.block_table
                }
                self.in_flight.append((step, self.engine.executor.execute(step), touched))
        self.take()

    @rule()
    def complete(self):
        if self.in_flight:
            step, output, _ = self.in_flight.popleft()
            self.engine._update(step, output)
        self.take()

    @rule(steps=st.integers(1, 30))
    def go_on(self, steps):
        for _ in range(steps):
            self.schedule()
            self.complete()

    def take(self):
        outputs, self.engine._outbox = self.engine._outbox, []
        for output in outputs:
            key = output.request_id, output.index
            assert key not in self.ended, "tokens after the end"
            self.emitted[key] += output.token_ids
            if output.finish_reason is not None:
                self.ended[key] = output.finish_reason
            request = self.requests[output.request_id]
            has_vector = request.pooling is not None and output.finish_reason is FinishReason.STOP
            assert (output.embedding is not None) == has_vector
            if output.embedding is not None:
                assert list(struct.unpack("<8f", output.embedding)) == fake_embedding(request.prompt_token_ids)

    @invariant()
    def tokens_are_those_of_the_sequence_alone(self):
        for (name, index), token_ids in getattr(self, "emitted", {}).items():
            request = self.requests[name]
            known = list(request.prompt_token_ids)
            for token_id in token_ids:
                assert token_id == fake_token(known, child_seed(request.seed, index))
                known.append(token_id)

    @invariant()
    def blocks_add_up(self):
        if not hasattr(self, "engine"):
            return
        scheduler = self.engine.scheduler
        pool = scheduler.kv.pool
        pool.check_invariants()
        holders = [0] * pool.num_blocks
        for table in [seq.block_table for seq in scheduler.running] + [blocks for _, blocks in scheduler._late_blocks]:
            for block in table:
                holders[block] += 1
        assert holders == [pool.ref_count(block) for block in range(pool.num_blocks)]
        for _, _, touched in self.in_flight:
            assert all(pool.ref_count(block) for block in touched), "a step in flight writes to a free block"
        assert len({seq.row for seq in scheduler.running}) == len(scheduler.running)
        assert scheduler.running == sorted(scheduler.running, key=lambda seq: seq.rank)

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        for _ in range(20000):
            if not self.engine.has_work and not self.in_flight:
                break
            self.schedule()
            self.complete()
        assert not self.engine.has_work, "requests left hanging"
        assert set(self.ended) == set(self.emitted), "a sequence never ended"
        assert self.engine.scheduler.kv.pool.num_used == 0
        self.engine._check_idle()


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
