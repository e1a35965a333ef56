"""What crosses between scheduling and execution: SchedulerOutput down, ModelRunnerOutput up, and the Executor seam.

Rows are stable places in the device tables, numbered from 0 to max_num_seqs - 1. A step carries deltas only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from octavo.outputs import PositionLogprobs
from octavo.pooling import Pooling
from octavo.sampling_params import SamplingParams


class TokenMask(Protocol):
    """Which tokens may come next in a text that follows a grammar; it comes from elsewhere, while a step computes.

    `error` says why the grammar cannot be followed any further. `was_missed`: a step went on without the mask, so that
    nothing could be sampled. `is_complete`: nothing may follow but an end.
    """

    error: str
    is_complete: bool
    was_missed: bool

    @property
    def is_ready(self) -> bool:
        """Whether a step may count on it."""
        ...

    @property
    def has_arrived(self) -> bool:
        """Whether it is there."""
        ...

    def allowed(self) -> bytes:
        """Bit t % 8 of byte t // 8 is token t; bytes that are not there are 0. Waits a little; for any thread."""
        ...

    def advance(self, token_ids: list[int]) -> None:
        """The text has more tokens."""
        ...

    def close(self) -> None:
        """The text has ended."""
        ...


@dataclass(frozen=True, slots=True)
class NewRow:
    """A sequence takes a row: everything the device tables must know of it.

    `token_ids` are all tokens known so far (prompt, then output), of which the first `num_prompt_tokens` are the
    prompt. `block_table` names the KV block of each `block_size` positions, for the positions allocated so far.
    `seed` is the child's own key. `prompt_logprobs` says whether this row must bring them (its params say how many).
    With `pooling` the row brings a vector, where its range ends at its last token, and samples nothing.
    `token_type_ids`: as in EngineRequest.
    """

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    block_table: list[int]
    params: SamplingParams
    seed: int
    stop_token_ids: tuple[int, ...]
    bad_words_token_ids: list[list[int]]
    prompt_logprobs: bool
    pooling: Pooling | None = None
    token_type_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step's work, to be applied in this order: removals, new rows, block copies, new blocks, tokens.

    `rows`, `num_computed_tokens` and `num_scheduled_tokens` are parallel: row r computes the KV of positions
    [num_computed, num_computed + num_scheduled). A row samples exactly when that range ends at its last token, and
    the sampled token becomes the row's next token. `block_copies` are (source, destination) block ids, copied before
    anything is computed. `new_blocks` are appended to the row's block table: (row, block ids). `masks`: row -> which of
    its tokens may be sampled, for the rows that follow a grammar and sample in this step.
    """

    step_id: int
    removed_rows: list[int]
    new_rows: list[NewRow]
    block_copies: list[tuple[int, int]]
    new_blocks: list[tuple[int, list[int]]]
    rows: list[int]
    num_computed_tokens: list[int]
    num_scheduled_tokens: list[int]
    masks: dict[int, TokenMask] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens that this step computes, over all rows."""
        return sum(self.num_scheduled_tokens)


@dataclass(frozen=True, slots=True)
class ModelRunnerOutput:
    """What one step computed, parallel to `SchedulerOutput.rows`.

    `sampled_token_ids[i]` is empty where row i did not sample. `logprobs[i]` has one entry a sampled token, for the
    rows that asked. `prompt_logprobs[i]` has one entry for each prompt token that the range's positions predict (the
    tokens after them). `failed` maps an index to a message where the row's numbers were not finite; nothing is
    sampled there. `embeddings` maps an index to the vector that the row asked for, fp32 in little endian.
    """

    step_id: int
    sampled_token_ids: list[list[int]]
    logprobs: dict[int, list[PositionLogprobs]] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[PositionLogprobs]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    embeddings: dict[int, bytes] = field(default_factory=dict)


class Executor(Protocol):
    """Runs steps on one or more devices. Steps are executed in the order in which they are submitted."""

    @property
    def num_blocks(self) -> int:
        """KV blocks in the pool, the null block (block 0) included."""
        ...

    @property
    def num_fallbacks(self) -> int:
        """How often a slower way was taken than the one intended."""
        ...

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        """Computes one step; raises EngineError when the device is lost."""
        ...

    def shutdown(self) -> None:
        """Frees the device."""
        ...


class StepResult(Protocol):
    """A step on its way: a `concurrent.futures.Future` is one."""

    def result(self) -> ModelRunnerOutput:
        """Waits for the step; raises EngineError when the device is lost."""
        ...


@runtime_checkable
class LateExecutor(Executor, Protocol):
    """An executor whose device computes by itself: steps are launched, and their results come later."""

    def launch(self, step: SchedulerOutput) -> StepResult:
        """Begins a step after those before it, and returns without waiting for any of them."""
        ...

    def make_ready(self) -> bool:
        """With no step on its way: does a piece of what start-up put off. False when nothing is left."""
        ...
