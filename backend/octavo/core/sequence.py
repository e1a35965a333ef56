"""Sequence: one completion in the making. A request with n > 1 is n sequences that share their prompt's blocks."""

from __future__ import annotations

from octavo.core.block_pool import BlockHash
from octavo.outputs import FinishReason
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams, child_seed

Rank = tuple[int, int]


class Sequence:
    """Tokens, progress and KV blocks of child `index` of a request. Owned and changed by the scheduler alone.

    `num_computed_tokens` advances when a step is scheduled, and so does `num_pending_tokens`: tokens that a step in
    flight is sampling. `num_cached_tokens` are those that the prefix cache gave when it first ran. `epoch` grows
    whenever results in flight stop counting (preemption, end). `row` is the place in the device tables while running.
    `num_published_blocks` of the block table are findable in the prefix cache.
    """

    __slots__ = (
        "admitted_step",
        "arrival",
        "block_hashes",
        "block_table",
        "epoch",
        "finish_reason",
        "index",
        "last_step",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_pending_tokens",
        "num_published_blocks",
        "request",
        "row",
        "token_ids",
    )

    def __init__(self, request: EngineRequest, index: int, arrival: int) -> None:
        emitted = request.emitted_token_ids[index] if request.emitted_token_ids else []
        self.request = request
        self.index = index
        self.arrival = arrival
        self.token_ids = request.prompt_token_ids + emitted
        self.num_cached_tokens = 0
        self.num_computed_tokens = 0
        self.num_pending_tokens = 0
        self.block_table: list[int] = []
        self.block_hashes: list[BlockHash] = []
        self.num_published_blocks = 0
        self.epoch = 0
        self.row: int | None = None
        self.admitted_step = 0
        self.last_step = -1
        self.finish_reason: FinishReason | None = None

    @property
    def params(self) -> SamplingParams:
        """How its tokens are chosen."""
        return self.request.params

    @property
    def rank(self) -> Rank:
        """Who goes first: lower priority values, then earlier arrivals."""
        return self.request.priority, self.arrival

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt; all later ones are output."""
        return len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens known or being sampled: what `num_computed_tokens` has to catch up with."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_remaining_tokens(self) -> int:
        """Tokens whose KV is not computed yet."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens

    @property
    def num_output_tokens(self) -> int:
        """Tokens after the prompt that are known."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def has_all_tokens(self) -> bool:
        """Whether every token that it may have is known or being sampled. Its params name a limit: see Engine."""
        assert self.request.params.max_tokens is not None
        return self.num_tokens >= len(self.request.prompt_token_ids) + self.request.params.max_tokens

    @property
    def seed(self) -> int:
        """This child's own key for random numbers."""
        return child_seed(self.request.seed, self.index)

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether the prompt's logprobs are still to be computed; such a prompt must not come from the cache."""
        return self.params.prompt_logprobs is not None and self.index == 0 and self.num_output_tokens == 0
