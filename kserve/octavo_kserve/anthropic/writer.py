"""AnthropicWriter: an answer as the object `message`, whole or as the events by which it grows.

Knows no JSON text, no stream and no connection.
"""

from __future__ import annotations

from typing import Any

import octavo
from octavo_kserve.anthropic.blocks import block_events, content_block
from octavo_kserve.anthropic.request import NAMES
from octavo_kserve.errors import error_reply
from octavo_kserve.openai.message_blocks import MessageBlocks
from octavo_kserve.openai.request import GenerateRequest
from octavo_kserve.openai.writer import Writer
from octavo_kserve.replies import anthropic_error


class AnthropicWriter(Writer):
    """Writes one message. Owns its blocks and how it ended."""

    names_events = True
    names = NAMES

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request
        self._blocks: MessageBlocks | None = None
        self._usage = octavo.Usage(0, 0, 0)
        self._ending: dict[str, str | None] = {"stop_reason": None, "stop_sequence": None}

    def whole(self, outputs: list[octavo.RequestOutput]) -> dict[str, Any]:
        """The message in one piece: what its events put together are."""
        self._read(outputs[0])
        assert self._blocks is not None
        return self._message([content_block(block) for block in self._blocks.blocks])

    def chunks(self, i: int, output: octavo.RequestOutput) -> list[dict[str, Any]]:
        """The events of what is new; before the first ones, that the message begins."""
        is_first = self._blocks is None
        events = self._read(output)
        if is_first:
            nothing = {"stop_reason": None, "stop_sequence": None}
            events.insert(0, {"type": "message_start", "message": self._message([]) | nothing})
        return events

    def last_chunks(self) -> list[dict[str, Any]]:
        """How it ended."""
        delta = {"type": "message_delta", "delta": dict(self._ending), "usage": self._counts()}
        return [delta, {"type": "message_stop"}]

    def failure(self, error: BaseException) -> list[dict[str, Any]]:
        """The error, as its body would be."""
        return [anthropic_error(error_reply(error))]

    def _read(self, output: octavo.RequestOutput) -> list[dict[str, Any]]:
        """Takes in what is new. The events of it, in their order."""
        if self._blocks is None:
            assert self._request.message is not None
            self._blocks = MessageBlocks(self._request.message, output.prompt or "")
        self._usage = output.usage
        events = []
        for completion in output.outputs:
            finished = completion.finish_reason is not None
            for change in self._blocks.push(completion.text, finished):
                events += block_events(change)
            if finished:
                self._end(completion, self._blocks.has_called)
        return events

    def _end(self, completion: octavo.CompletionOutput, has_called: bool) -> None:
        sequence = completion.stop_reason if isinstance(completion.stop_reason, str) else None
        if completion.finish_reason is octavo.FinishReason.LENGTH:
            reason = "max_tokens"
        elif has_called:
            reason = "tool_use"
        else:
            reason = "end_turn" if sequence is None else "stop_sequence"
        self._ending = {"stop_reason": reason, "stop_sequence": sequence}

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        call = self._request.call
        message = {
            "id": call.response_id,
            "type": "message",
            "role": "assistant",
            "model": call.model,
            "content": content,
        }
        return message | self._ending | {"usage": self._counts()}

    def _counts(self) -> dict[str, int]:
        """The prompt is the sum of three counts; there is no cache that clients write to."""
        usage = self._usage
        return {
            "input_tokens": usage.num_prompt_tokens - usage.num_cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": usage.num_cached_tokens,
            "output_tokens": usage.num_output_tokens,
        }
