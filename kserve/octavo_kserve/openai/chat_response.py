"""Responses to /chat/completions: the objects `chat.completion` and `chat.completion.chunk`."""

from __future__ import annotations

from typing import Any

import octavo
from octavo_kserve.openai.encoder import Encoder
from octavo_kserve.openai.logprobs import chat_logprobs
from octavo_kserve.openai.message import MessageWriter
from octavo_kserve.openai.request import GenerateRequest

# How an answer ends that calls tools and then stops.
TOOL_CALLS = "tool_calls"


class ChatEncoder(Encoder):
    """Writes answers as messages. Owns the writer of each choice's message.

    A streamed choice begins with a chunk that says whose message it is.
    """

    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, request: GenerateRequest) -> None:
        super().__init__(request)
        self._writers: dict[int, MessageWriter] = {}

    def whole(self, outputs: list[octavo.RequestOutput]) -> dict[str, Any]:
        """The response in one piece."""
        return super().whole(outputs) | self._about_prompt(0, outputs[0])

    def _choice(self, i: int, output: octavo.RequestOutput, completion: octavo.CompletionOutput) -> dict[str, Any]:
        message = self._writer(output, completion.index).whole(completion.text, self._echo(i, output))
        choice = {"index": completion.index, "message": message, "logprobs": self._logprobs(completion)}
        return choice | self._ending(completion)

    def _opening(self, i: int, output: octavo.RequestOutput, index: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": self._echo(i, output)}
        chunk = self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
        return [chunk | self._about_prompt(i, output)]

    def _deltas(
        self, index: int, output: octavo.RequestOutput, completion: octavo.CompletionOutput
    ) -> list[dict[str, Any]]:
        """What belongs to tokens and not to the message goes with the last delta of their text."""
        deltas = self._writer(output, index).deltas(completion.text, completion.finish_reason is not None)
        if not deltas and not self._shows_more_than_text(completion):
            return []
        *before, last = deltas or [{}]
        nothing = octavo.CompletionOutput(index=index)
        choices = [{"index": index, "delta": delta, "logprobs": None, **self._ending(nothing)} for delta in before]
        choice = {"index": index, "delta": last, "logprobs": self._logprobs(completion)}
        return [*choices, choice | self._ending(completion)]

    def _writer(self, output: octavo.RequestOutput, index: int) -> MessageWriter:
        if index not in self._writers:
            settings = self._request.message
            assert settings is not None
            self._writers[index] = MessageWriter(settings, output.prompt or "")
        return self._writers[index]

    def _ending(self, completion: octavo.CompletionOutput) -> dict[str, Any]:
        ending = super()._ending(completion)
        if completion.finish_reason is octavo.FinishReason.STOP and self._writers[completion.index].has_called:
            ending["finish_reason"] = TOOL_CALLS
        return ending

    def _logprobs(self, completion: octavo.CompletionOutput) -> dict[str, Any] | None:
        num_top = self._request.num_top_logprobs
        if num_top is None or (not completion.logprobs and self._request.call.streaming is not None):
            return None
        return chat_logprobs(completion.logprobs or [], num_top)
