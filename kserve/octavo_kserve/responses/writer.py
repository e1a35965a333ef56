"""ResponseWriter: an answer as the object `response`, whole or as the events by which it grows.

Knows no JSON text, no stream and no connection.
"""

from __future__ import annotations

import math
import time
from typing import Any

import octavo
from octavo_kserve.errors import error_reply
from octavo_kserve.openai.logprobs import chat_logprobs
from octavo_kserve.openai.message_blocks import Change, MessageBlocks, Step
from octavo_kserve.openai.writer import Writer
from octavo_kserve.responses.items import COMPLETED, IN_PROGRESS, INCOMPLETE, Item
from octavo_kserve.responses.request import NAMES, ResponseRequest

FAILED = "failed"
# What there are names for; all other errors are the server's.
_CODES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}


class ResponseWriter(Writer):
    """Writes one response. Owns its message, its items, and the number of the next event."""

    names_events = True
    names = NAMES

    def __init__(self, asked: ResponseRequest) -> None:
        self._request = asked.generate
        self._repeated = asked.repeated
        self._created_at = int(time.time())
        self._number = 0
        self._message: MessageBlocks | None = None
        self._items: list[Item] = []
        self._logprobs: list[dict[str, Any]] = []
        self._usage = octavo.Usage(0, 0, 0)
        self._status = IN_PROGRESS

    def whole(self, outputs: list[octavo.RequestOutput]) -> dict[str, Any]:
        """The response in one piece: what its last event has."""
        self._read(outputs[0])
        return self._response()

    def chunks(self, i: int, output: octavo.RequestOutput) -> list[dict[str, Any]]:
        """The events of what is new; before the first ones, that the response is there."""
        first = self._message is None
        opening = [self._lifecycle("created"), self._lifecycle(IN_PROGRESS)] if first else []
        return self._numbered(opening + self._read(output))

    def last_chunks(self) -> list[dict[str, Any]]:
        """That it is complete, or why it is not."""
        return self._numbered([self._lifecycle(self._status)])

    def failure(self, error: BaseException) -> list[dict[str, Any]]:
        """That it failed, and why."""
        reply = error_reply(error)
        self._status = FAILED
        event = self._lifecycle(FAILED)
        event["response"]["error"] = {"code": _CODES.get(reply.status, "server_error"), "message": reply.text}
        return self._numbered([event])

    def _read(self, output: octavo.RequestOutput) -> list[dict[str, Any]]:
        """Takes in what is new. The events of it, in their order."""
        if self._message is None:
            assert self._request.message is not None
            self._message = MessageBlocks(self._request.message, output.prompt or "")
        self._usage = output.usage
        events = []
        for completion in output.outputs:
            reason = completion.finish_reason
            if self._request.num_top_logprobs is not None:
                self._logprobs += _logprobs(completion, self._request.num_top_logprobs)
            if reason is not None:
                self._status = INCOMPLETE if reason is octavo.FinishReason.LENGTH else COMPLETED
            for change in self._message.push(completion.text, reason is not None):
                events += self._events(change)
        return events

    def _events(self, change: Change) -> list[dict[str, Any]]:
        if change.step is Step.OPENED:
            self._items.append(Item(change.block))
            return self._items[-1].opening()
        item = self._items[change.block.index]
        if change.step is Step.CLOSED:
            return item.closing(self._status_of(change.block.index))
        logprobs, self._logprobs = self._logprobs, []
        return [item.delta(change.text, logprobs)]

    def _status_of(self, index: int) -> str:
        """Of an answer that was cut off, the last item was; so is a call that the model itself did not end."""
        assert self._message is not None
        block = self._message.blocks[index]
        is_open_call = block.kind is octavo.PartKind.TOOL_CALL and not self._message.has_called
        is_cut = is_open_call or self._status in (INCOMPLETE, FAILED)
        return INCOMPLETE if is_cut and index == len(self._message.blocks) - 1 else COMPLETED

    def _lifecycle(self, word: str) -> dict[str, Any]:
        return {"type": f"response.{word}", "response": self._response()}

    def _response(self) -> dict[str, Any]:
        ended, call = self._status in (COMPLETED, INCOMPLETE), self._request.call
        return {
            "id": call.response_id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": int(time.time()) if self._status == COMPLETED else None,
            "status": self._status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self._status == INCOMPLETE else None,
            "model": call.model,
            "output": [item.whole(self._status_of(i)) for i, item in enumerate(self._items)],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": self._counts() if ended else None,
            **self._repeated,
        }

    def _counts(self) -> dict[str, Any]:
        usage = self._usage
        return {
            "input_tokens": usage.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": self._num_reasoning_tokens()},
            "total_tokens": usage.num_prompt_tokens + usage.num_output_tokens,
        }

    def _num_reasoning_tokens(self) -> int:
        """By its share of the characters: which of an answer's tokens made the reasoning, nobody has counted."""
        assert self._message is not None
        lengths = [(block.kind, len(block.text)) for block in self._message.blocks]
        num_reasoning = sum(length for kind, length in lengths if kind is octavo.PartKind.REASONING)
        num_written = sum(length for _, length in lengths)
        return math.ceil(self._usage.num_output_tokens * num_reasoning / num_written) if num_reasoning else 0

    def _numbered(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
        return events


def _logprobs(completion: octavo.CompletionOutput, num_top: int) -> list[dict[str, Any]]:
    """Those of the chat route, where `bytes` may be null: here they are a list."""
    positions: list[dict[str, Any]] = chat_logprobs(completion.logprobs or [], num_top)["content"]
    for token in positions:
        for each in (token, *token["top_logprobs"]):
            each["bytes"] = each["bytes"] or []
    return positions
