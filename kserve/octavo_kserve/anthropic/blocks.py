"""Content blocks of a message, and the events of which each is made. Knows nothing of the message around them."""

from __future__ import annotations

import json
from typing import Any

import octavo
from octavo_kserve.anthropic.arguments import arguments_object
from octavo_kserve.openai.message_blocks import Block, Change, Step


def content_block(block: Block) -> dict[str, Any]:
    """The whole block. Nobody signs what a model of one's own has thought."""
    match block.kind:
        case octavo.PartKind.CONTENT:
            return {"type": "text", "text": block.text}
        case octavo.PartKind.REASONING:
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        case octavo.PartKind.TOOL_CALL:
            arguments = arguments_object(block.text)
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": arguments}


def block_events(change: Change) -> list[dict[str, Any]]:
    """The events of one step of a block.

    A call's arguments wait for its end: clients parse what they have of them, and only then they are known to be JSON.
    """
    block = change.block
    place: dict[str, Any] = {"index": block.index}
    is_call = block.kind is octavo.PartKind.TOOL_CALL
    match change.step:
        case Step.OPENED:
            empty = Block(block.index, block.kind, block.name, block.call_id, pieces=["{}"] if is_call else [])
            return [{"type": "content_block_start", **place, "content_block": content_block(empty)}]
        case Step.WRITTEN:
            return [] if is_call else [{"type": "content_block_delta", **place, "delta": _delta(block, change.text)}]
        case Step.CLOSED:
            stop = {"type": "content_block_stop", **place}
            if not is_call:
                return [stop]
            arguments = json.dumps(arguments_object(block.text), ensure_ascii=False)
            delta = {"type": "input_json_delta", "partial_json": arguments}
            return [{"type": "content_block_delta", **place, "delta": delta}, stop]


def _delta(block: Block, text: str) -> dict[str, Any]:
    if block.kind is octavo.PartKind.REASONING:
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}
