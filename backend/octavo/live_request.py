"""LiveRequest: what the front remembers of a request that has not ended, and how tokens become text and outputs.

Because it remembers every emitted token, it can be replayed into a new engine process. Knows no process.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from octavo.outputs import (
    CompletionOutput,
    EngineOutput,
    FinishReason,
    Logprob,
    PositionLogprobs,
    RequestOutput,
    Usage,
)
from octavo.request import EngineRequest
from octavo.request_stream import RequestStream
from octavo.request_times import RequestTimes
from octavo.stats import Observations
from octavo.text.detokenizer import Detokenizer
from octavo.text.spelling import Spelling
from octavo.text.tokenizer import Tokenizer
from octavo.vocabulary import Vocabulary


class Completion:
    """One of the n completions: its text state, and every token that the engine has sent for it."""

    __slots__ = (
        "_detokenizer",
        "_spelling",
        "_tokenizer",
        "cumulative_logprob",
        "finished",
        "index",
        "params",
        "token_ids",
    )

    def __init__(self, tokenizer: Tokenizer, request: EngineRequest, index: int) -> None:
        self.index = index
        self.params = request.params
        self.token_ids: list[int] = []
        self.cumulative_logprob = 0.0
        self.finished = False
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, request.prompt_token_ids, request.params)
        self._spelling = Spelling()

    def push(self, new: EngineOutput) -> CompletionOutput:
        """What the engine's output means to the reader; a stop string may end it where the engine did not."""
        self.token_ids += new.token_ids
        reason = new.finish_reason
        hidden = new.stop_token_id is not None and not self._is_shown(new.stop_token_id)
        shown = new.token_ids[:-1] if hidden else new.token_ids
        delta = self._detokenizer.push(shown, reason is not None)
        count = len(new.token_ids)
        stop_reason: int | str | None = new.stop_token_id if new.stop_token_id in self.params.stop_token_ids else None
        if delta.stop is not None:
            count, reason, stop_reason = delta.num_tokens, FinishReason.STOP, delta.stop
        self.finished = reason is not None
        logprobs = None
        if self.params.logprobs is not None:
            positions = self._logprobs((new.logprobs or [])[:count], [*delta.pieces, ""])
            logprobs = self._spelling.push(positions, delta.text, self.finished)
        return CompletionOutput(
            index=self.index,
            text=delta.text,
            token_ids=new.token_ids[:count],
            logprobs=logprobs,
            cumulative_logprob=None if logprobs is None else self.cumulative_logprob,
            finish_reason=reason,
            stop_reason=stop_reason,
        )

    def _is_shown(self, stop_token_id: int) -> bool:
        """Whether the token that ended it is part of the text: a special one only if the caller wants to see stops."""
        return self.params.include_stop_str_in_output or stop_token_id not in self._tokenizer.special_token_ids

    def _logprobs(self, positions: list[PositionLogprobs], pieces: list[str]) -> list[dict[int, Logprob]]:
        """`pieces` are the chosen tokens' texts, as they stand in the text."""
        found = []
        for position, piece in zip(positions, pieces, strict=False):
            self.cumulative_logprob += position[0].logprob
            found.append(decode_candidates(self._tokenizer, position, piece))
        return found


class LiveRequest:
    """Owned by the front thread, but for `stream`, which any reader may use.

    `fresh` is what this step brought so far, for all completions together. `num_deaths` counts how often an engine
    process died while it ran and brought no token since. `sent_to` is the process that knows it.
    """

    __slots__ = (
        "_num_cached_tokens",
        "_num_output_tokens",
        "_tokenizer",
        "children",
        "deadline",
        "fresh",
        "num_deaths",
        "prompt",
        "request",
        "request_id",
        "sent_to",
        "stream",
        "times",
    )

    def __init__(
        self,
        tokenizer: Tokenizer,
        request: EngineRequest,
        prompt: str | None,
        stream: RequestStream,
        arrived_at: float,
    ) -> None:
        """`arrived_at` in monotonic seconds."""
        self.request = request
        self.request_id = stream.request_id
        self.prompt = prompt
        self.stream = stream
        self.children = [Completion(tokenizer, request, index) for index in range(request.params.n)]
        self.times = RequestTimes(request, arrived_at)
        self.deadline: float | None = None
        self.fresh: RequestOutput | None = None
        self.num_deaths = 0
        self.sent_to: object = None
        self._tokenizer = tokenizer
        self._num_output_tokens = 0
        self._num_cached_tokens: int | None = None

    @property
    def wire_id(self) -> str:
        """Its id inside the engine."""
        return self.request.request_id

    @property
    def vocabulary(self) -> Vocabulary:
        """What the model's tokens write."""
        return self._tokenizer.vocabulary

    @property
    def unfinished(self) -> Iterable[Completion]:
        """The completions that have not ended."""
        return (child for child in self.children if not child.finished)

    def push(self, new: EngineOutput, now: float, seen: Observations) -> CompletionOutput | None:
        """Takes what a step brought for one completion into `fresh`; None for one that had ended already.

        `now` is in monotonic seconds.
        """
        child = self.children[new.index]
        if child.finished:
            return None
        output = child.push(new)
        self.num_deaths = 0
        self._num_output_tokens += len(output.token_ids)
        if self._num_cached_tokens is None:
            self._num_cached_tokens = new.num_cached_tokens
        if output.token_ids:
            self.times.see_tokens(new, len(output.token_ids), now, seen)
        elif new.embedding is not None:
            self.times.see_embedding(new.scheduled_at, now, seen)
        if child.finished:
            self._see_end_of([child], now, seen)
        fresh = self._output([output])
        if new.prompt_logprobs is not None:
            fresh.prompt_logprobs = self._prompt_logprobs(new.prompt_logprobs)
        if new.embedding is not None:
            fresh.embedding = np.frombuffer(new.embedding, "<f4")
        if self.fresh is None:
            self.fresh = fresh
        else:
            self.fresh.extend(fresh)
        return output

    def fail(self, now: float, seen: Observations) -> None:
        """The request has ended by an error: so have the completions that had not."""
        unfinished = list(self.unfinished)
        for child in unfinished:
            child.finished = True
        self._see_end_of(unfinished, now, seen)

    def take_fresh(self) -> RequestOutput | None:
        """Hands over what is new."""
        fresh, self.fresh = self.fresh, None
        return fresh

    def replay(self) -> EngineRequest:
        """The request, to be continued after the tokens that it has emitted."""
        if not any(child.token_ids or child.finished for child in self.children):
            return self.request
        return replace(
            self.request,
            emitted_token_ids=[child.token_ids for child in self.children],
            finished=[child.finished for child in self.children],
        )

    def _see_end_of(self, ended: list[Completion], now: float, seen: Observations) -> None:
        seen.num_generation_tokens += [len(child.token_ids) for child in ended if child.token_ids]
        if all(child.finished for child in self.children):
            self.times.see_end(now, seen)

    def _output(self, outputs: list[CompletionOutput]) -> RequestOutput:
        num_prompt_tokens = len(self.request.prompt_token_ids)
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.request.prompt_token_ids,
            outputs=outputs,
            usage=Usage(num_prompt_tokens, self._num_output_tokens, self._num_cached_tokens or 0),
            finished=all(child.finished for child in self.children),
            timing=self.times.timing,
        )

    def _prompt_logprobs(self, positions: list[PositionLogprobs]) -> list[dict[int, Logprob] | None]:
        text = self._tokenizer.token_text
        return [
            None,
            *(decode_candidates(self._tokenizer, position, text(position[0].token_id)) for position in positions),
        ]


def decode_candidates(tokenizer: Tokenizer, position: PositionLogprobs, piece: str) -> dict[int, Logprob]:
    """The candidates at one position with their texts; `piece` is that of the first, the chosen one."""
    chosen, *others = position
    decoded = {chosen.token_id: Logprob(chosen.logprob, chosen.rank, piece)}
    for candidate in others:
        if candidate.token_id != chosen.token_id:
            text = tokenizer.token_text(candidate.token_id)
            decoded[candidate.token_id] = Logprob(candidate.logprob, candidate.rank, text)
    return decoded
