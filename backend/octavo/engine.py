"""Engine: requests in, tokens out, one step at a time. Token ids only; it knows no text, no process and no host."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from octavo.checkpoint import Checkpoint, open_checkpoint
from octavo.config import EngineConfig, resolve
from octavo.core.block_pool import BlockPool
from octavo.core.kv_cache_manager import KVCacheManager
from octavo.core.request_limits import limited
from octavo.core.scheduler import Limits, Scheduler
from octavo.core.sequence import Sequence
from octavo.core.step import Executor, LateExecutor, ModelRunnerOutput, SchedulerOutput
from octavo.core.step_budget import StepBudget
from octavo.errors import InvalidRequest, ModelLoadError
from octavo.faults import FaultyExecutor, read_fault
from octavo.grammar_gate import GrammarGate
from octavo.outputs import EngineOutput, FinishReason, PositionLogprobs
from octavo.pipeline import Pipeline
from octavo.request import EngineRequest
from octavo.startup_clock import OnProgress, StartupClock
from octavo.stats import EngineStats

logger = logging.getLogger(__name__)

# A step with prompts may take so many times as long as one without, unless `itl_budget_s` says how long. A device that
# computes by itself is idle beside a few streams' tokens; on a CPU every token of a prompt adds to the step.
_LATE_SLOWDOWN, _SLOWDOWN = 2.0, 6.5


@dataclass(slots=True)
class LiveRequest:
    """A request that has not ended: its children that have not, by index, and those that wait for the prompt.

    `scheduled_at` is when a step first worked on it (monotonic seconds), None before.
    """

    request: EngineRequest
    stop_token_ids: frozenset[int]
    children: dict[int, Sequence]
    held: list[Sequence] = field(default_factory=list)
    prompt_logprobs: list[PositionLogprobs] = field(default_factory=list)
    scheduled_at: float | None = None


class Engine:
    """Turns requests into tokens, step by step. Not thread-safe: one thread owns it.

    Owns the live requests; the scheduler owns their sequences, the executor the device, the gate whatever follows a
    grammar.
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        model_digest: str = "",
        startup_s: Mapping[str, float] | None = None,
        is_encoder: bool = False,
    ) -> None:
        """`config` has been resolved. startup_s: what the phases of start-up took, for the stats.

        is_encoder: the tokens of a prompt see each other, so that it is computed whole.
        """
        assert config.max_model_len and config.max_num_seqs and config.max_num_batched_tokens
        self.config = config
        self.executor = executor
        pool = BlockPool(executor.num_blocks)
        kv_cache_manager = KVCacheManager(pool, config.block_size, config.enable_prefix_caching, model_digest)
        threshold = config.long_prefill_token_threshold or config.max_num_batched_tokens
        limits = Limits(config.max_num_batched_tokens, config.max_num_seqs, threshold, is_encoder)
        self.scheduler = Scheduler(limits, kv_cache_manager)
        is_late = isinstance(executor, LateExecutor)
        slowdown = _LATE_SLOWDOWN if is_late else _SLOWDOWN
        # Nobody streams a vector.
        self._budget = StepBudget() if config.runner == "pooling" else StepBudget(config.itl_budget_s, slowdown)
        ahead = is_late if config.async_scheduling is None else config.async_scheduling
        self._pipeline = Pipeline(executor, num_ahead=int(ahead))
        self.gate = GrammarGate()
        self._live: dict[str, LiveRequest] = {}
        self._outbox: list[EngineOutput] = []
        self._num_arrived = 0
        self._startup_s = dict(startup_s or {})
        self._totals: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()

    @classmethod
    def from_config(cls, config: EngineConfig, on_progress: OnProgress | None = None) -> Engine:
        """Opens the model and builds what runs it. `on_progress(phase, fraction)` is told how far it is.

        Raises ModelLoadError.
        """
        return cls.from_checkpoint(config, open_checkpoint(config.model), on_progress)

    @classmethod
    def from_checkpoint(
        cls, config: EngineConfig, checkpoint: Checkpoint, on_progress: OnProgress | None = None
    ) -> Engine:
        """Like `from_config`, for a model that the caller has opened already."""
        clock = StartupClock(on_progress)
        clock("import", 0.0)
        config = resolve(config, checkpoint)
        # Before the weights: what cannot work fails at once.
        fault = read_fault(os.environ)
        module, _, factory = config.executor.partition(":")
        try:
            create = getattr(importlib.import_module(module), factory)
        except (ImportError, AttributeError, ValueError) as error:
            raise ModelLoadError(f"executor: cannot load {config.executor!r} ({error})") from error
        executor: Executor = create(config, checkpoint, clock)
        if fault is not None:
            logger.warning("%s: this engine will break on purpose", fault)
            executor = FaultyExecutor(executor, fault)
        # A text's last token needs no slot: nothing follows it.
        capacity = (executor.num_blocks - 1) * config.block_size + (config.runner != "pooling")
        assert config.max_model_len is not None
        if capacity < config.max_model_len:
            logger.warning("max_model_len is cut from %d to the KV cache's %d tokens", config.max_model_len, capacity)
            config = replace(config, max_model_len=capacity)
        startup_s = clock.finish()
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in startup_s.items())
        logger.info("ready after %.1f s: %s", sum(startup_s.values()), phases)
        return cls(config, executor, checkpoint.digest, startup_s, checkpoint.is_encoder)

    @property
    def num_blocks(self) -> int:
        """KV blocks in the pool, the null block included."""
        return self.executor.num_blocks

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do or to say."""
        return bool(self._live or self._outbox or self._pipeline)

    def add_request(self, request: EngineRequest) -> None:
        """Takes a request. Raises InvalidRequest or PromptTooLong when it can never run."""
        if request.request_id in self._live:
            raise InvalidRequest("request_id", request.request_id, "an id that no live request has")
        assert self.config.max_model_len is not None
        request = limited(request, self.config.max_model_len, self.scheduler.kv)
        if request.params.structured_outputs is not None:
            self.gate.prepare(request.params.structured_outputs)
        children = {}
        for index in range(request.params.n):
            if not (request.finished and request.finished[index]):
                children[index] = Sequence(request, index, self._num_arrived)
                self._num_arrived += 1
        if not children:
            return
        live = LiveRequest(request, frozenset(request.stop_token_ids), children)
        self._live[request.request_id] = live
        # One child computes the prompt, the others then start from its blocks.
        first, *live.held = children.values()
        self._enter(first)

    def abort(self, request_id: str, index: int | None = None, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Ends a request, or one child of it, wherever it is. An unknown or ended one is ignored.

        The end arrives with the outputs of the next step.
        """
        live = self._live.get(request_id)
        if live is None:
            return
        for child in list(live.children.values()):
            if index is None or child.index == index:
                self._end(live, child, reason)

    def step(self) -> list[EngineOutput]:
        """Schedules one step and returns what is new, of this one or of the one before it.

        Raises EngineError when the device is lost.
        """
        self._admit_grammars()
        if self._pipeline and self._mostly_follows_grammars:
            self._collect()
        step = self.scheduler.schedule(self._budget.num_prompt_tokens)
        if step is not None:
            if step.new_rows:
                self._note_first_scheduled(time.monotonic())
            self._pipeline.submit(step)
        if self._pipeline.is_full or (step is None and self._pipeline):
            self._collect()
        elif step is None and self._live:
            self.gate.wait()
        if not self._live:
            self._check_idle()
        outputs, self._outbox = self._outbox, []
        return outputs

    @property
    def _mostly_follows_grammars(self) -> bool:
        """Whether it is for the few if a step is scheduled ahead: without the last token of a text that follows a
        grammar, nobody knows what may come next in it."""
        grammars, running = self.scheduler.grammars, self.scheduler.running
        return bool(grammars) and 0 < len(running) <= 2 * sum(seq in grammars for seq in running)

    def _collect(self) -> None:
        done = self._pipeline.collect()
        self._budget.observe(done.step.num_scheduled_tokens, done.duration_s)
        self._update(done.step, done.output)
        self.gate.flush()

    def make_ready(self) -> bool:
        """With no work: does a piece of what start-up put off, so that later steps are faster. False: nothing is left.

        Raises EngineError when the device is lost.
        """
        return isinstance(self.executor, LateExecutor) and not self._pipeline and self.executor.make_ready()

    def discard_outputs(self) -> None:
        """Forgets what the next step would have said, for a caller that has aborted everything and left."""
        self._outbox.clear()

    def stats(self) -> EngineStats:
        """One reading of the counters and gauges."""
        kv = self.scheduler.kv
        running = self.scheduler.running
        # Shared blocks are full: only a sequence's own last block can have unused slots.
        unused = sum(len(seq.block_table) * kv.block_size - seq.num_computed_tokens for seq in running)
        return EngineStats(
            num_requests_running=len(running),
            num_requests_waiting=self.scheduler.num_waiting
            + self.gate.num_held
            + sum(len(live.held) for live in self._live.values()),
            num_blocks=kv.pool.num_blocks - 1,
            num_free_blocks=kv.pool.num_free,
            block_size=kv.block_size,
            kv_cache_waste=unused / (kv.pool.num_used * kv.block_size) if kv.pool.num_used else 0.0,
            prompt_tokens_total=self._totals["prompt_tokens"],
            generation_tokens_total=self._totals["generation_tokens"],
            preemptions_total=self.scheduler.num_preemptions,
            prefix_cache_queries_total=kv.num_queried_tokens,
            prefix_cache_hits_total=kv.num_hit_tokens,
            steps_total=self._totals["steps"],
            fallbacks_total=self.executor.num_fallbacks,
            finished_total=dict(self._finished),
            startup_s=self._startup_s,
        )

    def shutdown(self) -> None:
        """Frees the device. Live requests are forgotten."""
        self._pipeline.close()
        self.gate.close()
        self.executor.shutdown()

    def _enter(self, seq: Sequence) -> None:
        """Lets a sequence wait for its turn, or first for its grammar."""
        if seq.params.structured_outputs is None:
            self.scheduler.add(seq)
        else:
            self.gate.hold(seq)

    def _admit_grammars(self) -> None:
        ready, refused = self.gate.turn()
        for seq, grammar in ready.items():
            self.scheduler.grammars[seq] = grammar
            self.scheduler.add(seq)
        for seq, error in refused.items():
            self._end(self._live[seq.request.request_id], seq, FinishReason.REJECTED, str(error), error.parameter)

    def _note_first_scheduled(self, now: float) -> None:
        for seq in self.scheduler.running:
            live = self._live[seq.request.request_id]
            if live.scheduled_at is None:
                live.scheduled_at = now

    def _update(self, step: SchedulerOutput, output: ModelRunnerOutput) -> None:
        self._totals["steps"] += 1
        for i, (seq, current) in enumerate(self.scheduler.complete(step.step_id, output.failed)):
            if not current:
                continue
            live = self._live[seq.request.request_id]
            if i in output.prompt_logprobs:
                # After a preemption the prompt is computed again, from its beginning.
                live.prompt_logprobs[step.num_computed_tokens[i] :] = output.prompt_logprobs[i]
            if i in output.failed:
                self._fail(live, seq, output.failed[i])
            elif i in output.embeddings:
                self._deliver_embedding(live, seq, output.embeddings[i])
            elif output.sampled_token_ids[i]:
                self._deliver(live, seq, output.sampled_token_ids[i], output.logprobs.get(i))

    def _fail(self, live: LiveRequest, seq: Sequence, message: str) -> None:
        """Nothing could be sampled. A grammar may be the reason: at its end, or where its mask did not come."""
        grammar = self.scheduler.grammars.get(seq)
        if grammar is not None and grammar.was_missed and not grammar.error:
            self.scheduler.withdraw(seq)
            self.gate.hold(seq, self.scheduler.grammars.pop(seq))
        elif grammar is not None and grammar.is_complete:
            self._end(live, seq, FinishReason.STOP)
        else:
            self._end(live, seq, FinishReason.ERROR, (grammar.error if grammar is not None else "") or message)

    def _deliver(
        self, live: LiveRequest, seq: Sequence, token_ids: list[int], logprobs: list[PositionLogprobs] | None
    ) -> None:
        """Appends sampled tokens to a sequence and ends it where one of them ends it."""
        is_first = seq.num_output_tokens == 0
        asked = seq.params.prompt_logprobs is not None
        taken = 0
        reason = None
        for token_id in token_ids:
            seq.num_pending_tokens -= 1
            seq.token_ids.append(token_id)
            taken += 1
            reason = self._reason_to_end(live, seq, token_id)
            if reason is not None:
                break
        self._totals["generation_tokens"] += taken
        if is_first and seq.index == 0:
            self._totals["prompt_tokens"] += seq.num_prompt_tokens
        self._outbox.append(
            EngineOutput(
                request_id=seq.request.request_id,
                index=seq.index,
                token_ids=token_ids[:taken],
                finish_reason=reason,
                stop_token_id=seq.token_ids[-1] if reason is FinishReason.STOP else None,
                logprobs=logprobs[:taken] if logprobs is not None else None,
                prompt_logprobs=live.prompt_logprobs if is_first and seq.index == 0 and asked else None,
                num_cached_tokens=seq.num_cached_tokens,
                scheduled_at=live.scheduled_at if is_first else None,
            )
        )
        if reason is not None:
            self._forget(live, seq, reason)
        elif seq in self.scheduler.grammars:
            self.scheduler.grammars[seq].advance(token_ids)
        self._release_held(live)

    def _deliver_embedding(self, live: LiveRequest, seq: Sequence, embedding: bytes) -> None:
        self._totals["prompt_tokens"] += seq.num_prompt_tokens
        self._outbox.append(
            EngineOutput(
                request_id=seq.request.request_id,
                index=seq.index,
                token_ids=[],
                finish_reason=FinishReason.STOP,
                num_cached_tokens=seq.num_cached_tokens,
                scheduled_at=live.scheduled_at,
                embedding=embedding,
            )
        )
        self._forget(live, seq, FinishReason.STOP)

    @staticmethod
    def _reason_to_end(live: LiveRequest, seq: Sequence, token_id: int) -> FinishReason | None:
        if token_id in live.stop_token_ids and seq.num_output_tokens >= seq.params.min_tokens:
            return FinishReason.STOP
        if seq.params.structured_outputs is not None and token_id in seq.request.end_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if seq.num_output_tokens >= (seq.params.max_tokens or 0) else None

    def _end(
        self, live: LiveRequest, seq: Sequence, reason: FinishReason, error: str = "", parameter: str = ""
    ) -> None:
        """Ends a sequence without a token."""
        self._outbox.append(
            EngineOutput(
                request_id=seq.request.request_id,
                index=seq.index,
                token_ids=[],
                finish_reason=reason,
                error=error,
                parameter=parameter,
            )
        )
        self._forget(live, seq, reason)
        self._release_held(live)

    def _forget(self, live: LiveRequest, seq: Sequence, reason: FinishReason) -> None:
        seq.finish_reason = reason
        self._finished[reason.value] += 1
        if seq in live.held:
            live.held.remove(seq)
        elif not self.gate.drop(seq):
            self.scheduler.remove(seq)
            if seq in self.scheduler.grammars:
                self.scheduler.grammars.pop(seq).close()
        del live.children[seq.index]
        if not live.children:
            del self._live[live.request.request_id]

    def _release_held(self, live: LiveRequest) -> None:
        """The prompt has been computed, or whoever did it is gone: the other children may run."""
        for seq in live.held:
            self._enter(seq)
        live.held = []

    def _check_idle(self) -> None:
        """With no request alive nothing may be held: a leak is found here, not when the pool is empty."""
        pool = self.scheduler.kv.pool
        assert not self.scheduler.running and (self.scheduler.num_in_flight or not pool.num_used), "KV blocks leaked"
