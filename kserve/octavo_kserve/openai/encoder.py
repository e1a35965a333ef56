"""Responses: what a request's streams bring, as the objects of the OpenAI API, whole or in chunks.

Here is what both kinds of requests have in common. Knows no JSON text, no stream and no connection.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any

import octavo
from octavo_kserve.errors import error_reply
from octavo_kserve.openai.logprobs import Position, prompt_logprobs
from octavo_kserve.openai.request import GenerateRequest
from octavo_kserve.openai.writer import Writer


class Encoder(Writer):
    """Writes the response to one request that completes or chats.

    Owns what later chunks depend on: the token counts so far, and which choices have begun.
    """

    whole_kind: str
    chunk_kind: str

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._created = int(time.time())
        self._usages = [octavo.Usage(0, 0, 0)] * len(request.prompts)
        self._prompt_logprobs: list[list[Position | None] | None] = [None] * len(request.prompts)
        self._begun: set[int] = set()

    def whole(self, outputs: list[octavo.RequestOutput]) -> dict[str, Any]:
        """The response in one piece: the whole output for each prompt."""
        choices = []
        for i, output in enumerate(outputs):
            self._remember(i, output)
            choices += [self._choice(i, output, completion) for completion in output.outputs]
        return self._envelope(self.whole_kind, choices) | {"usage": self._usage()}

    def chunks(self, i: int, output: octavo.RequestOutput) -> list[dict[str, Any]]:
        """The chunks for what is new about prompt `i`, of each choice about which a client would see anything."""
        self._remember(i, output)
        found = []
        for completion in output.outputs:
            index = self._index(i, completion)
            if index not in self._begun:
                self._begun.add(index)
                found += self._opening(i, output, index)
            found += [self._chunk([choice]) for choice in self._deltas(index, output, completion)]
        return found

    def last_chunk(self) -> dict[str, Any]:
        """The chunk without choices that has the token counts."""
        return self._envelope(self.chunk_kind, []) | {"usage": self._usage()}

    def last_chunks(self) -> list[dict[str, Any]]:
        """That one where it is asked for."""
        streaming = self._request.call.streaming
        return [self.last_chunk()] if streaming is not None and streaming.usage_at_end else []

    def failure(self, error: BaseException) -> list[dict[str, Any]]:
        """An event that is the error's body."""
        return [error_reply(error).body]

    @abstractmethod
    def _choice(self, i: int, output: octavo.RequestOutput, completion: octavo.CompletionOutput) -> dict[str, Any]:
        """A whole choice."""

    @abstractmethod
    def _opening(self, i: int, output: octavo.RequestOutput, index: int) -> list[dict[str, Any]]:
        """The chunks with which a choice begins."""

    @abstractmethod
    def _deltas(
        self, index: int, output: octavo.RequestOutput, completion: octavo.CompletionOutput
    ) -> list[dict[str, Any]]:
        """A choice with what is new in it, as often as it takes; not at all if a client would see nothing."""

    def _about_prompt(self, i: int, output: octavo.RequestOutput) -> dict[str, Any]:
        """vLLM's members that speak of a prompt, if the client asked for them."""
        found: dict[str, Any] = {}
        if self._request.call.returns_token_ids:
            found["prompt_token_ids"] = output.prompt_token_ids
        if self._request.call.returns_prompt_logprobs:
            found["prompt_logprobs"] = prompt_logprobs(self._prompt_logprobs[i])
        return found

    def _index(self, i: int, completion: octavo.CompletionOutput) -> int:
        return i * self._request.params.n + completion.index

    def _ending(self, completion: octavo.CompletionOutput) -> dict[str, Any]:
        """Members that every choice has behind its text."""
        reason = completion.finish_reason
        ending = {"finish_reason": None if reason is None else reason.value, "stop_reason": completion.stop_reason}
        return ending | ({"token_ids": completion.token_ids} if self._request.call.returns_token_ids else {})

    def _echo(self, i: int, output: octavo.RequestOutput) -> str:
        echo = self._request.echoes[i]
        return self._request.call.served.engine.tokenizer.decode(output.prompt_token_ids) if echo is None else echo

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._envelope(self.chunk_kind, choices)
        streaming = self._request.call.streaming
        assert streaming is not None
        if streaming.usage_on_all:
            chunk["usage"] = self._usage()
        elif streaming.usage_at_end:
            chunk["usage"] = None
        return chunk

    def _remember(self, i: int, output: octavo.RequestOutput) -> None:
        self._usages[i] = output.usage
        if output.prompt_logprobs is not None:
            self._prompt_logprobs[i] = output.prompt_logprobs

    def _shows_more_than_text(self, completion: octavo.CompletionOutput) -> bool:
        """Text is held back while it may become a stop string, say, and tokens may have none."""
        tokens = completion.token_ids if self._request.call.returns_token_ids else None
        return bool(completion.finish_reason or completion.logprobs or tokens)

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        call = self._request.call
        return {
            "id": call.response_id,
            "object": kind,
            "created": self._created,
            "model": call.model,
            "choices": choices,
        }

    def _usage(self) -> dict[str, Any]:
        prompt = sum(usage.num_prompt_tokens for usage in self._usages)
        completion = sum(usage.num_output_tokens for usage in self._usages)
        cached = sum(usage.num_cached_tokens for usage in self._usages)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
