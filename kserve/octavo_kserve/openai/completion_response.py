"""Responses to /completions: the object `text_completion`, whole or in chunks."""

from __future__ import annotations

from typing import Any

import octavo
from octavo_kserve.openai.encoder import Encoder
from octavo_kserve.openai.logprobs import chosen_texts, completion_logprobs
from octavo_kserve.openai.request import GenerateRequest

_Lists = dict[str, Any]


class CompletionEncoder(Encoder):
    """Writes texts. Owns where the next token of each choice stands in its text, in characters."""

    whole_kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, request: GenerateRequest) -> None:
        super().__init__(request)
        self._offsets: dict[int, int] = {}

    def _choice(self, i: int, output: octavo.RequestOutput, completion: octavo.CompletionOutput) -> dict[str, Any]:
        index, echo = self._index(i, completion), self._echo(i, output)
        self._offsets[index] = len(echo)
        ahead, behind = self._echo_logprobs(i, output, echo), self._logprobs(index, completion)
        if ahead is not None and behind is not None:
            behind = {name: ahead[name] + behind[name] for name in behind}
        choice = {"index": index, "text": echo + completion.text, "logprobs": behind}
        return choice | self._ending(completion) | self._about_prompt(i, output)

    def _opening(self, i: int, output: octavo.RequestOutput, index: int) -> list[dict[str, Any]]:
        """The echo and whatever speaks of the prompt, if anything."""
        echo, about = self._echo(i, output), self._about_prompt(i, output)
        self._offsets[index] = len(echo)
        if not echo and not about:
            return []
        logprobs = self._echo_logprobs(i, output, echo)
        choice = {"index": index, "text": echo, "logprobs": logprobs, "finish_reason": None, "stop_reason": None}
        return [self._chunk([choice | about])]

    def _deltas(
        self, index: int, output: octavo.RequestOutput, completion: octavo.CompletionOutput
    ) -> list[dict[str, Any]]:
        if not completion.text and not self._shows_more_than_text(completion):
            return []
        choice = {"index": index, "text": completion.text, "logprobs": self._logprobs(index, completion)}
        return [choice | self._ending(completion)]

    def _echo_logprobs(self, i: int, output: octavo.RequestOutput, echo: str) -> _Lists | None:
        positions = self._prompt_logprobs[i]
        if not echo or self._request.num_top_logprobs is None or positions is None:
            return None
        token_text = self._request.call.served.engine.tokenizer.token_text
        return completion_logprobs(positions, map(token_text, output.prompt_token_ids), 0)

    def _logprobs(self, index: int, completion: octavo.CompletionOutput) -> _Lists | None:
        positions = completion.logprobs
        if self._request.num_top_logprobs is None or (not positions and self._request.call.streaming is not None):
            return None
        texts = chosen_texts(positions or [])
        lists = completion_logprobs(positions or [], texts, self._offsets[index])
        self._offsets[index] += sum(map(len, texts))
        return lists
