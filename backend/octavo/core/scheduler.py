"""Scheduler: which sequence computes how many tokens in the next step. Pure Python, deterministic, no phases.

A sequence has `num_computed_tokens`; each step hands out tokens so that it catches up with `num_tokens`. State advances
when a step is scheduled; its results are late mail, keyed by (sequence, epoch), so steps may overlap. Knows no text.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field

from octavo.core.kv_cache_manager import KVCacheManager
from octavo.core.sequence import Sequence
from octavo.core.step import NewRow, SchedulerOutput, TokenMask
from octavo.core.waiting_queue import WaitingQueue

# A prompt that was passed over for one step counts as this many tokens shorter in the next: nobody starves.
_AGEING_TOKENS = 64
# Logprobs of a prompt are the host's work, a third of a millisecond a token with a large vocabulary: streams, and
# whoever watches for a hang, must not wait for thousands of them.
_LONGEST_LOGPROBS = 256
# Each costs the hashes of its prompt: of a thousand that come at once the others must wait for their turn.
_MOST_HELD_BACK = 32


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step, and all running sequences together, may take.

    With `whole_prompts` no sequence is computed in parts: its tokens see each other.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    long_prefill_token_threshold: int
    whole_prompts: bool = False


@dataclass(slots=True)
class ScheduledStep:
    """A step being put together, then in flight: the deltas for the device, and who is in it.

    `entries` are parallel to `rows`: (sequence, its epoch, tokens computed once the step is done).
    """

    step_id: int
    budget: int
    new_rows: list[NewRow] = field(default_factory=list)
    block_copies: list[tuple[int, int]] = field(default_factory=list)
    new_blocks: list[tuple[int, list[int]]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)
    num_scheduled_tokens: list[int] = field(default_factory=list)
    masks: dict[int, TokenMask] = field(default_factory=dict)
    entries: list[tuple[Sequence, int, int]] = field(default_factory=list)


class Scheduler:
    """Owns all sequences that have not ended.

    `running` holds the sequences that have a row, best rank first, `_leaders` those of them whose prompt is not in the
    prefix cache yet: who shares it waits for them instead of computing it again. `grammars` are what some of the
    sequences must follow: what may come next in these depends on their last token.
    """

    def __init__(self, limits: Limits, kv_cache_manager: KVCacheManager) -> None:
        self.limits = limits
        self.kv = kv_cache_manager
        self.running: list[Sequence] = []
        self.grammars: dict[Sequence, TokenMask] = {}
        self.num_preemptions = 0
        self._waiting = WaitingQueue()
        self._leaders: list[Sequence] = []
        self._free_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self._removed_rows: list[int] = []
        self._in_flight: deque[ScheduledStep] = deque()
        self._late_blocks: deque[tuple[int, list[int]]] = deque()
        self._next_step_id = 0

    @property
    def num_waiting(self) -> int:
        """Sequences that have no row yet, or lost it."""
        return len(self._waiting)

    @property
    def num_in_flight(self) -> int:
        """Steps that were scheduled and not yet completed."""
        return len(self._in_flight)

    def add(self, seq: Sequence) -> None:
        """Lets a sequence wait for its turn."""
        self._waiting.add(seq)

    def remove(self, seq: Sequence) -> None:
        """The sequence has ended, wherever it was: its row is free now, its blocks once no step may touch them."""
        assert seq.finish_reason is not None
        if seq.row is not None:
            self._leave(seq)
        else:
            self._waiting.ended()

    def withdraw(self, seq: Sequence) -> None:
        """Takes a running sequence out, to be computed again once it is added again."""
        self._leave(seq)
        seq.num_pending_tokens = 0
        self.num_preemptions += 1

    def schedule(self, tokens_beside: Callable[[int], int | None] = lambda _: None) -> SchedulerOutput | None:
        """Puts the next step together and advances every sequence in it; None when there is nothing to compute.

        tokens_beside(n): how many tokens of prompts may go beside n streams; None for what the limits leave.
        """
        step = ScheduledStep(self._next_step_id, self.limits.max_num_batched_tokens)
        self._make_room_for_urgent()
        catching_up = self._schedule_next_tokens(step)
        num_prompt_tokens = tokens_beside(len(step.rows))
        if num_prompt_tokens is not None:
            step.budget = min(step.budget, num_prompt_tokens)
        self._schedule_catching_up(step, catching_up)
        self._admit(step, len(catching_up))
        if not step.rows:
            assert not step.new_rows
            return None
        self._next_step_id += 1
        self._in_flight.append(step)
        removed_rows, self._removed_rows = self._removed_rows, []
        return SchedulerOutput(
            step_id=step.step_id,
            removed_rows=removed_rows,
            new_rows=step.new_rows,
            block_copies=step.block_copies,
            new_blocks=step.new_blocks,
            rows=step.rows,
            num_computed_tokens=step.num_computed_tokens,
            num_scheduled_tokens=step.num_scheduled_tokens,
            masks=step.masks,
        )

    def complete(self, step_id: int, failed: Container[int] = ()) -> Iterable[tuple[Sequence, bool]]:
        """The oldest step in flight is done. Gives its sequences in order, each with whether its result counts.

        Publishes the blocks that are full now, but nothing of the sequences at the places that `failed`: what they
        published before is not found any more. Blocks that waited for this step become free.
        """
        step = self._in_flight.popleft()
        assert step.step_id == step_id, "steps complete in the order in which they were scheduled"
        block_size = self.kv.block_size
        for place, (seq, epoch, num_computed) in enumerate(step.entries):
            current = seq.epoch == epoch
            if place in failed:
                self.kv.forget(seq)
            elif current and num_computed // block_size > seq.num_published_blocks:
                self.kv.publish(seq, num_computed)
                self._follow(seq)
            yield seq, current
        while self._late_blocks and self._late_blocks[0][0] <= step_id:
            self.kv.pool.release(self._late_blocks.popleft()[1])

    def _schedule_next_tokens(self, step: ScheduledStep) -> list[Sequence]:
        """One token for each sequence that lacks just one. Returns those that lack more."""
        catching_up = []
        index = 0
        while index < len(self.running):
            seq = self.running[index]
            index += 1
            remaining = seq.num_remaining_tokens
            if remaining > 1:
                catching_up.append(seq)
            elif not step.budget or self._must_wait(seq):
                continue
            elif self._make_room(seq, 1):
                self._put(step, seq, 1)
        return [seq for seq in catching_up if seq.row is not None]

    def _schedule_catching_up(self, step: ScheduledStep, catching_up: list[Sequence]) -> None:
        """What is left of the budget, shortest remainder first, the long-waiting earlier."""
        now = step.step_id
        catching_up.sort(key=lambda seq: seq.num_remaining_tokens - _AGEING_TOKENS * (now - seq.admitted_step))
        for seq in catching_up:
            count = min(step.budget, self._chunk(seq, alone=len(catching_up) == 1 and self._first_ready() is None))
            if seq.row is None or not count:
                continue
            if not self._make_room(seq, count):
                # Fewer tokens may still fit: into the last block, and into what is free.
                room = (len(seq.block_table) + self.kv.pool.num_free) * self.kv.block_size - seq.num_computed_tokens
                count = min(count, room)
                if seq.row is None or count <= 0 or not self._make_room(seq, count):
                    continue
            self._put(step, seq, count)

    def _admit(self, step: ScheduledStep, num_catching_up: int) -> None:
        """Waiting sequences, best rank first, until one does not fit: overtaking would starve the large ones."""
        while step.budget and self._free_rows and (seq := self._first_ready()) is not None:
            source = self._fork_source(step, seq)
            prefix = self.kv.find_prefix(seq)
            if source is not None and seq.num_prompt_tokens - 1 <= len(prefix) * self.kv.block_size:
                source = None
            num_shared = 0 if source is None else (seq.num_prompt_tokens - 1) // self.kv.block_size
            if not self._fits(seq, prefix if source is None else [], num_shared):
                return
            if self.limits.whole_prompts and seq.num_remaining_tokens > step.budget:
                return
            self._waiting.pop_first()
            self._enter(step, seq, prefix, source)
            alone = not num_catching_up and self._first_ready() is None
            count = min(step.budget, self._chunk(seq, alone))
            added = self.kv.extend(seq, seq.num_computed_tokens + count)
            assert added is not None, "admission reserved too little"
            step.new_rows.append(self._new_row(seq))
            self._advance(step, seq, count)
            num_catching_up += seq.num_remaining_tokens > 1

    def _enter(self, step: ScheduledStep, seq: Sequence, prefix: list[int], source: Sequence | None) -> None:
        seq.row = self._free_rows.pop()
        seq.admitted_step = step.step_id
        insort(self.running, seq, key=lambda other: other.rank)
        if source is None:
            self.kv.adopt(seq, prefix)
            self.kv.count_lookup(len(seq.token_ids), seq.num_computed_tokens)
            if not seq.epoch:
                seq.num_cached_tokens = seq.num_computed_tokens
        elif (copy := self.kv.fork(seq, source, seq.num_prompt_tokens - 1)) is not None:
            step.block_copies.append(copy)
        num_blocks = seq.num_prompt_tokens // self.kv.block_size
        if self.kv.enable_prefix_caching and seq.num_published_blocks < num_blocks and not seq.wants_prompt_logprobs:
            self._leaders.append(seq)

    def _first_ready(self) -> Sequence | None:
        """The best-ranked waiting sequence; those before it, which have a leader, are held back."""
        for _ in range(_MOST_HELD_BACK):
            seq = self._waiting.first()
            found = self._leader_of(seq) if seq is not None else None
            if found is None:
                return seq
            self._waiting.hold_first_back(*found)
        return None

    def _leader_of(self, seq: Sequence) -> tuple[Sequence, int] | None:
        """Who is computing most of what the sequence lacks, and how many of its blocks are wanted.

        None for little, and for who would be held up by a lower priority.
        """
        if not self._leaders or seq.wants_prompt_logprobs:
            return None
        known = len(self.kv.find_prefix(seq))
        num_lacking = len(seq.token_ids) - known * self.kv.block_size
        # Little is computed sooner than somebody else's step ends.
        worth_it = max(num_lacking, self.limits.long_prefill_token_threshold) / 2
        if num_lacking < worth_it:
            return None
        for leader in self._leaders:
            # What it has published and is not found any more would be waited for in vain.
            if leader.request.priority <= seq.request.priority and leader.num_published_blocks <= known:
                num_blocks = self.kv.num_common_blocks(seq, leader, known)
                if num_blocks * self.kv.block_size >= worth_it:
                    return leader, known + num_blocks
        return None

    def _follow(self, leader: Sequence) -> None:
        """The sequence has published blocks, or left."""
        self._waiting.let_go(leader)
        is_done = leader.row is None or leader.num_published_blocks >= leader.num_prompt_tokens // self.kv.block_size
        if is_done and leader in self._leaders:
            self._leaders.remove(leader)

    def _fork_source(self, step: ScheduledStep, seq: Sequence) -> Sequence | None:
        """A running sibling that an earlier step has brought past the prompt, for a child that has no KV yet."""
        if seq.request.params.n == 1 or seq.wants_prompt_logprobs:
            return None
        for other in self.running:
            if other.request is seq.request:
                now = sum(n for row, n in zip(step.rows, step.num_scheduled_tokens, strict=True) if row == other.row)
                if other.num_computed_tokens - now >= seq.num_prompt_tokens - 1:
                    return other
        return None

    def _fits(self, seq: Sequence, prefix: list[int], num_shared: int = 0) -> bool:
        """Whether all tokens of the sequence fit beside what running ones still need for theirs, and a little more.

        Of its blocks, `prefix` are cached and `num_shared` are held by a sibling.
        """
        needed = self.kv.num_blocks_for(seq.num_tokens) - len(prefix) - num_shared
        promised = sum(
            self.kv.num_blocks_for(other.num_tokens) - len(other.block_table)
            for other in self.running
            if other.num_remaining_tokens > 1
        )
        # Without a margin the next decode step would preempt what has just been admitted.
        margin = max(self.kv.pool.num_blocks // 100, 1) if self.running else 0
        return needed + promised + margin <= self.kv.num_free_without(prefix)

    def _must_wait(self, seq: Sequence) -> bool:
        """Whether the token that is being sampled may be its last, or it is not known which ones may follow it."""
        if seq.num_pending_tokens and seq.has_all_tokens:
            return True
        grammar = self.grammars.get(seq) if self.grammars else None
        return grammar is not None and (seq.num_pending_tokens > 0 or not grammar.is_ready)

    def _chunk(self, seq: Sequence, alone: bool) -> int:
        """How many tokens a catching-up sequence may take: a long prompt leaves room for others, if there are any."""
        remaining = seq.num_remaining_tokens
        if seq.wants_prompt_logprobs:
            remaining = min(remaining, _LONGEST_LOGPROBS)
        whole = alone or self.limits.whole_prompts
        return remaining if whole else min(remaining, self.limits.long_prefill_token_threshold)

    def _make_room(self, seq: Sequence, count: int) -> bool:
        """Whether `count` more tokens fit now, if need be after preempting lower ranks, at last the sequence itself."""
        target = seq.num_computed_tokens + count
        if target <= len(seq.block_table) * self.kv.block_size:
            return True
        while self.kv.num_blocks_for(target) - len(seq.block_table) > self.kv.pool.num_free:
            if self._late_blocks:
                return False  # blocks are on their way back: wait a step instead of throwing work away
            victim = self.running[-1]
            if victim.last_step == self._next_step_id:
                return False  # all that rank lower are part of this step already
            self._preempt(victim)
            if victim is seq:
                return False
        return True

    def _make_room_for_urgent(self) -> None:
        """A waiting sequence of better priority takes the place of the lowest-ranked running one."""
        while self.running and not self._late_blocks and (first := self._first_ready()) is not None:
            victim = self.running[-1]
            if first.request.priority >= victim.request.priority:
                return
            if self._free_rows and self._fits(first, self.kv.find_prefix(first)):
                return
            self._preempt(victim)

    def _preempt(self, seq: Sequence) -> None:
        """Back to waiting, to be computed again. Its published blocks stay findable, so that is cheap."""
        self.withdraw(seq)
        self.add(seq)

    def _leave(self, seq: Sequence) -> None:
        assert seq.row is not None
        self.running.remove(seq)
        self._free_rows.append(seq.row)
        self._removed_rows.append(seq.row)
        seq.row = None
        seq.epoch += 1
        blocks = self.kv.detach(seq)
        self._follow(seq)
        if self._in_flight and seq.last_step >= self._in_flight[0].step_id:
            self._late_blocks.append((seq.last_step, blocks))
        else:
            self.kv.pool.release(blocks)

    def _put(self, step: ScheduledStep, seq: Sequence, count: int) -> None:
        """Schedules `count` tokens of a running sequence; there is room for them."""
        new_blocks = self.kv.extend(seq, seq.num_computed_tokens + count)
        assert new_blocks is not None and seq.row is not None
        if new_blocks:
            step.new_blocks.append((seq.row, new_blocks))
        self._advance(step, seq, count)

    def _advance(self, step: ScheduledStep, seq: Sequence, count: int) -> None:
        assert seq.row is not None
        computed = seq.num_computed_tokens
        step.rows.append(seq.row)
        step.num_computed_tokens.append(computed)
        step.num_scheduled_tokens.append(count)
        step.budget -= count
        computed += count
        if computed == seq.num_tokens:
            seq.num_pending_tokens += 1
            if seq in self.grammars:
                step.masks[seq.row] = self.grammars[seq]
        seq.num_computed_tokens = computed
        seq.last_step = step.step_id
        step.entries.append((seq, seq.epoch, computed))

    @staticmethod
    def _new_row(seq: Sequence) -> NewRow:
        assert seq.row is not None
        return NewRow(
            row=seq.row,
            token_ids=list(seq.token_ids),
            num_prompt_tokens=seq.num_prompt_tokens,
            block_table=list(seq.block_table),
            params=seq.params,
            seed=seq.seed,
            stop_token_ids=seq.request.stop_token_ids,
            bad_words_token_ids=seq.request.bad_words_token_ids,
            prompt_logprobs=seq.wants_prompt_logprobs,
            pooling=seq.request.pooling,
            token_type_ids=seq.request.token_type_ids,
        )
