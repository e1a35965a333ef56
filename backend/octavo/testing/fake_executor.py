"""An executor that needs no torch: its tokens are a pure function of the sequence's tokens and its seed.

They are read out of a shadow KV memory: a slot that was not written for that very prefix is an error, so scheduling
mistakes cannot hide.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig
from octavo.core.step import ModelRunnerOutput, NewRow, SchedulerOutput, TokenMask
from octavo.outputs import PositionLogprobs, TokenLogprob
from octavo.startup_clock import OnProgress
from octavo.testing.fake_model import FAKE_EOS, FAKE_VOCAB_SIZE

PACED_STEP_S = 0.004
_MASK = (1 << 64) - 1


def mix(value: int, token: int) -> int:
    """A 64-bit hash of a 64-bit state and one more token (the finaliser of splitmix64)."""
    x = (value ^ (token + 0x9E3779B97F4A7C15)) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def fake_token(token_ids: list[int], seed: int) -> int:
    """The token that the fake executor puts after `token_ids`; printable ASCII, never EOS."""
    state = 0
    for token_id in token_ids:
        state = mix(state, token_id)
    return 32 + mix(state, seed & _MASK) % 95


def fake_embedding(token_ids: list[int]) -> list[float]:
    """The vector that the fake executor makes of a prompt, whatever its PoolingParams: 8 multiples of 1/8 below 1."""
    state = 0
    for token_id in token_ids:
        state = mix(state, token_id)
    return [(state >> 3 * place & 7) / 8 for place in range(8)]


@dataclass(slots=True)
class FakeRow:
    """What the fake knows of one row."""

    new: NewRow
    token_ids: list[int]
    block_table: list[int]


class FakeModelRunner:
    """An Executor over a shadow KV memory: slot -> hash of the whole prefix up to that token.

    With `strict` every slot that a row reads is checked in every step, else only the last one before the new tokens.
    """

    def __init__(self, num_blocks: int, block_size: int, strict: bool = False) -> None:
        self.num_blocks = num_blocks
        self.num_fallbacks = 0
        self.num_steps = 0
        self._block_size = block_size
        self._strict = strict
        self._rows: dict[int, FakeRow] = {}
        self._slots: dict[int, int] = {}

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Applies the deltas in the order that SchedulerOutput names, checks every read, and samples."""
        self.num_steps += 1
        for row in step.removed_rows:
            del self._rows[row]
        for new in step.new_rows:
            assert new.row not in self._rows, f"row {new.row} is taken"
            self._rows[new.row] = FakeRow(new, list(new.token_ids), list(new.block_table))
        for source, target in step.block_copies:
            self._copy_block(source, target)
        for row, blocks in step.new_blocks:
            self._rows[row].block_table += blocks
        output = ModelRunnerOutput(step.step_id, [])
        scheduled = zip(step.rows, step.num_computed_tokens, step.num_scheduled_tokens, strict=True)
        for i, (row, start, count) in enumerate(scheduled):
            self._compute(self._rows[row], start, count, i, output)
            if row in step.masks:
                self._follow_grammar(self._rows[row], step.masks[row], i, output)
        return output

    def shutdown(self) -> None:
        """Forgets everything."""
        self._rows.clear()
        self._slots.clear()

    def _compute(self, row: FakeRow, start: int, count: int, i: int, output: ModelRunnerOutput) -> None:
        assert count > 0, f"row {row.new.row} has nothing to compute"
        state = self._read_prefix(row, start)
        for position in range(start, start + count):
            state = mix(state, row.token_ids[position])
            self._slots[self._slot(row, position)] = state
        if row.new.prompt_logprobs:
            last = min(start + count, row.new.num_prompt_tokens - 1)
            output.prompt_logprobs[i] = [_certain(row.token_ids[p + 1]) for p in range(start, last)]
        if start + count < len(row.token_ids) or row.new.pooling is not None:
            output.sampled_token_ids.append([])
            if start + count == len(row.token_ids):
                output.embeddings[i] = struct.pack("<8f", *fake_embedding(row.token_ids))
            return
        token_id = 32 + mix(state, row.new.seed & _MASK) % 95
        row.token_ids.append(token_id)
        output.sampled_token_ids.append([token_id])
        if row.new.params.logprobs is not None:
            output.logprobs[i] = [_certain(token_id)]

    def _follow_grammar(self, row: FakeRow, mask: TokenMask, i: int, output: ModelRunnerOutput) -> None:
        """Another token instead of one that may not come: printable ASCII or EOS, where that may."""
        (token_id,) = output.sampled_token_ids[i]
        allowed = int.from_bytes(mask.allowed(), "little")
        if allowed >> token_id & 1:
            return
        output.sampled_token_ids[i].clear()
        row.token_ids.pop()
        usual = [token for token in (*range(32, 127), FAKE_EOS) if allowed >> token & 1]
        choices = usual or [token for token in range(FAKE_VOCAB_SIZE) if allowed >> token & 1]
        if not choices:
            output.failed[i] = "no token is left to choose from"
            return
        output.sampled_token_ids[i].append(choices[mix(len(row.token_ids), token_id) % len(choices)])
        row.token_ids += output.sampled_token_ids[i]

    def _read_prefix(self, row: FakeRow, end: int) -> int:
        state = 0
        if self._strict:
            for position in range(end):
                state = mix(state, row.token_ids[position])
                self._check(row, position, state)
        elif end:
            state = self._slots[self._slot(row, end - 1)]
        return state

    def _check(self, row: FakeRow, position: int, state: int) -> None:
        found = self._slots.get(self._slot(row, position))
        assert found == state, f"row {row.new.row} reads position {position}, which holds another prefix"

    def _slot(self, row: FakeRow, position: int) -> int:
        block = row.block_table[position // self._block_size]
        assert 0 < block < self.num_blocks, f"row {row.new.row} uses block {block}"
        return block * self._block_size + position % self._block_size

    def _copy_block(self, source: int, target: int) -> None:
        for offset in range(self._block_size):
            value = self._slots.get(source * self._block_size + offset)
            if value is None:
                self._slots.pop(target * self._block_size + offset, None)
            else:
                self._slots[target * self._block_size + offset] = value


def _certain(token_id: int) -> PositionLogprobs:
    return [TokenLogprob(token_id, 0.0, 1)]


def create_fake_executor(config: EngineConfig, checkpoint: Checkpoint, on_progress: OnProgress) -> FakeModelRunner:
    """The factory to name in `EngineConfig.executor`: "octavo.testing:create_fake_executor"."""
    on_progress("loading weights", 1.0)
    return FakeModelRunner(config.num_gpu_blocks_override or 4096, config.block_size)


class PacedModelRunner(FakeModelRunner):
    """A FakeModelRunner as slow as a small model, so that a test can act in the middle of a stream."""

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Like the fake's, a little later."""
        time.sleep(PACED_STEP_S)
        return super().execute(step)


def create_paced_executor(config: EngineConfig, checkpoint: Checkpoint, on_progress: OnProgress) -> PacedModelRunner:
    """Like `create_fake_executor`; each step takes PACED_STEP_S."""
    on_progress("loading weights", 1.0)
    return PacedModelRunner(config.num_gpu_blocks_override or 4096, config.block_size)
