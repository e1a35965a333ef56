"""Responses to /chat/completions: the objects `chat.completion` and `chat.completion.chunk`."""

from __future__ import annotations

from typing import Any

import octavo
from octavo_kserve.openai.encoder import Encoder
from octavo_kserve.openai.logprobs import chat_logprobs


class ChatEncoder(Encoder):
    """Writes answers as messages. A streamed choice begins with a chunk that says whose message it is."""

    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def whole(self, outputs: list[octavo.RequestOutput]) -> dict[str, Any]:
        """The response in one piece."""
        return super().whole(outputs) | self._about_prompt(0, outputs[0])

    def _choice(self, i: int, output: octavo.RequestOutput, completion: octavo.CompletionOutput) -> dict[str, Any]:
        message = {"role": "assistant", "content": self._echo(i, output) + completion.text, "refusal": None}
        choice = {"index": completion.index, "message": message, "logprobs": self._logprobs(completion)}
        return choice | self._ending(completion)

    def _opening(self, i: int, output: octavo.RequestOutput, index: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": self._echo(i, output)}
        chunk = self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
        return [chunk | self._about_prompt(i, output)]

    def _delta(self, index: int, completion: octavo.CompletionOutput) -> dict[str, Any]:
        delta = {"content": completion.text} if completion.text else {}
        choice = {"index": index, "delta": delta, "logprobs": self._logprobs(completion)}
        return choice | self._ending(completion)

    def _logprobs(self, completion: octavo.CompletionOutput) -> dict[str, Any] | None:
        num_top = self._request.num_top_logprobs
        if num_top is None or (not completion.logprobs and self._request.call.streaming is not None):
            return None
        return chat_logprobs(completion.logprobs or [], num_top)
