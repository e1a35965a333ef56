"""Responses onto the wire: RequestOutput to output tensors.

Knows no server object, no stream and no thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict

import numpy as np

from octavo.outputs import CompletionOutput, Logprob, RequestOutput, Timing
from octavo.v2.request_codec import GenerateRequest
from octavo.v2.tensors import Array

# JSON has no infinity; this is what OpenAI's API and vLLM write for "impossible".
LOWEST_LOGPROB = -9999.0
_LOWEST_FLOAT = float(np.finfo(np.float32).min)
# These change with every token, also with one that brings no text.
_PER_TOKEN = frozenset({"token_ids", "num_output_tokens", "cumulative_logprob"})


class ResponseEncoder:
    """Writes the responses of one request.

    Owns what every response says again, also of a sequence with nothing new: how it ended, its cumulative logprob.
    """

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._finish_reasons = ["None"] * request.params.n
        self._cumulative_logprobs = [0.0] * request.params.n

    def has_news(self, output: RequestOutput) -> bool:
        """Whether a client would see anything of this delta: text is held back while it may become a stop string."""
        return output.finished or any(self._shows(completion) for completion in output.outputs)

    def encode(self, output: RequestOutput) -> dict[str, Array]:
        """The output tensors of one response, by name: only those that the client asked for.

        Each has one element for each of the n sequences, where it does not speak of the request as a whole.
        """
        for completion in output.outputs:
            self._remember(completion)
        by_index = {completion.index: completion for completion in output.outputs}
        completions = [by_index.get(i) or CompletionOutput(index=i) for i in range(self._request.params.n)]
        wanted = self._request.outputs
        tensors = {name: write(self, completions) for name, write in _PER_SEQUENCE.items() if name in wanted}
        return tensors | {name: write(output) for name, write in PER_REQUEST.items() if name in wanted}

    def _shows(self, completion: CompletionOutput) -> bool:
        wanted = self._request.outputs
        return bool(
            completion.text
            or completion.finish_reason is not None
            or (completion.token_ids and not _PER_TOKEN.isdisjoint(wanted))
            or (completion.logprobs and "logprobs" in wanted)
        )

    def _remember(self, completion: CompletionOutput) -> None:
        if completion.finish_reason is not None:
            self._finish_reasons[completion.index] = completion.finish_reason.value
        if completion.cumulative_logprob is not None:
            self._cumulative_logprobs[completion.index] = max(completion.cumulative_logprob, _LOWEST_FLOAT)

    def _text_output(self, completions: list[CompletionOutput]) -> Array:
        return as_strings(self._request.echo + completion.text for completion in completions)

    def _finish_reason(self, completions: list[CompletionOutput]) -> Array:
        return as_strings(self._finish_reasons)

    def _cumulative_logprob(self, completions: list[CompletionOutput]) -> Array:
        return np.array(self._cumulative_logprobs, dtype=np.float32)

    def _logprobs(self, completions: list[CompletionOutput]) -> Array:
        if not self._request.logprobs_asked:
            return as_strings("null" for _ in completions)
        return as_strings(json.dumps([_position(p) for p in completion.logprobs or []]) for completion in completions)

    def _num_output_tokens(self, completions: list[CompletionOutput]) -> Array:
        return np.array([len(completion.token_ids) for completion in completions], dtype=np.uint32)

    def _token_ids(self, completions: list[CompletionOutput]) -> Array:
        return as_strings(json.dumps(completion.token_ids) for completion in completions)


_PER_SEQUENCE: dict[str, Callable[[ResponseEncoder, list[CompletionOutput]], Array]] = {
    "text_output": ResponseEncoder._text_output,
    "finish_reason": ResponseEncoder._finish_reason,
    "cumulative_logprob": ResponseEncoder._cumulative_logprob,
    "logprobs": ResponseEncoder._logprobs,
    "num_output_tokens": ResponseEncoder._num_output_tokens,
    "token_ids": ResponseEncoder._token_ids,
}


def _num_input_tokens(output: RequestOutput) -> Array:
    return np.array([len(output.prompt_token_ids)], dtype=np.uint32)


def _timing(output: RequestOutput) -> Array:
    """Seconds by name, to the microsecond; null while not known."""
    seconds = asdict(output.timing or Timing())
    rounded = {name: None if value is None else round(value, 6) for name, value in seconds.items()}
    return as_strings([json.dumps(rounded)])


# What speaks of the request as a whole, whatever it brings.
PER_REQUEST: dict[str, Callable[[RequestOutput], Array]] = {"num_input_tokens": _num_input_tokens, "timing": _timing}


def _position(candidates: dict[int, Logprob]) -> dict[int, dict[str, object]]:
    """Candidates at one position; JSON makes a string of the token id. Escapes make any text valid."""
    return {
        token_id: {
            "logprob": max(candidate.logprob, LOWEST_LOGPROB),
            "rank": candidate.rank,
            "decoded_token": candidate.decoded_token,
        }
        for token_id, candidate in candidates.items()
    }


def as_strings(texts: Iterable[str]) -> Array:
    """A tensor of texts."""
    return np.array([text.encode("utf-8") for text in texts], dtype=np.object_)
