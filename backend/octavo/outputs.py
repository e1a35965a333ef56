"""What comes out: EngineOutput (token ids, across the process boundary) and RequestOutput (text, to the caller)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray


class FinishReason(StrEnum):
    """Why a sequence ended. Every sequence ends exactly once, in exactly one of these."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    REJECTED = "rejected"
    ERROR = "error"


class TokenLogprob(NamedTuple):
    """One candidate at one position: natural logarithm of its probability, and its rank (1 is the best)."""

    token_id: int
    logprob: float
    rank: int


# The candidates at one position. The token that was chosen (in a prompt: that stands there) comes first.
PositionLogprobs = list[TokenLogprob]


class EngineOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one step brought for one sequence of one request: new tokens, maybe its end.

    `logprobs` has one entry a new token when asked for. `prompt_logprobs` has one entry for each prompt token after
    the first and comes once, on child 0, with its first token. `num_cached_tokens` counts prompt tokens that the prefix
    cache gave. `scheduled_at` is when a step first worked on the request (monotonic seconds, on one machine the same
    in all processes), and comes with a sequence's first token. `error` is a message for the client and goes with
    FinishReason.ERROR or REJECTED; `parameter` names the one at fault, where there is one. `embedding` is the vector
    that a pooling request asked for, fp32 in little endian: it comes with the request's end.
    """

    request_id: str
    index: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: list[PositionLogprobs] | None = None
    prompt_logprobs: list[PositionLogprobs] | None = None
    num_cached_tokens: int = 0
    scheduled_at: float | None = None
    error: str = ""
    parameter: str = ""
    embedding: bytes | None = None


@dataclass(frozen=True, slots=True)
class Logprob:
    """One candidate, with its text. `decoded_token`s of the chosen tokens concatenate to the text."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One of the n completions. On a stream every field but the reasons and the cumulative logprob is what is new.

    Logprobs come with the text of their token: while text is held back, later than their `token_ids`.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def extend(self, later: CompletionOutput) -> None:
        """Appends what came later, so that a slow reader gets one larger output."""
        self.text += later.text
        self.token_ids += later.token_ids
        if self.logprobs is None:
            self.logprobs = later.logprobs
        elif later.logprobs is not None:
            # In place: an unread stream grows by a token at a time, on the thread that serves all streams.
            self.logprobs += later.logprobs
        self.cumulative_logprob = later.cumulative_logprob
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request so far. `num_cached_tokens` of the prompt were not computed again."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long the parts of one request took, in seconds; None while that is not known.

    Queue: from its arrival until a step first worked on it; prefill: from there to the first token; decode: from there
    to the last. The first token is counted from the arrival, and so is the whole (e2e). A request that survived an
    engine crash keeps what was known before.
    """

    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    time_to_first_token_s: float | None = None
    e2e_s: float | None = None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """What a request has brought: on a stream the new part, from `LLM.generate` the whole.

    `outputs` holds the completions that have something new, by index. `timing` is as of this output, None before the
    first token. `error` explains FinishReason.ERROR. `embedding` is what a request with PoolingParams brings: fp32
    [dimensions], or of a TextPair its score, fp32 [1]; its one completion ends then, without text.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    usage: Usage
    finished: bool = False
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    timing: Timing | None = None
    error: str = ""
    embedding: NDArray[np.float32] | None = field(default=None, compare=False)

    def extend(self, later: RequestOutput) -> None:
        """Appends a later output of the same request."""
        mine = {output.index: output for output in self.outputs}
        for output in later.outputs:
            if output.index in mine:
                mine[output.index].extend(output)
            else:
                self.outputs.append(output)
        self.outputs.sort(key=lambda output: output.index)
        self.usage, self.finished = later.usage, later.finished
        self.prompt_logprobs = self.prompt_logprobs or later.prompt_logprobs
        self.timing = later.timing or self.timing
        self.embedding = self.embedding if later.embedding is None else later.embedding
        self.error = self.error or later.error
