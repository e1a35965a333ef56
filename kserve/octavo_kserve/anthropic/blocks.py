"""Content blocks of a message, and the events of which each is made. Knows nothing of the message around them."""

from __future__ import annotations

from typing import Any

import octavo
from octavo_kserve.openai.depth import is_too_deep
from octavo_kserve.openai.message_blocks import Block, Change, Step

# The member under which clients send arguments back that are not JSON.
INVALID_JSON = "INVALID_JSON"


def content_block(block: Block) -> dict[str, Any]:
    """The whole block. Nobody signs what a model of one's own has thought."""
    match block.kind:
        case octavo.PartKind.CONTENT:
            return {"type": "text", "text": block.text}
        case octavo.PartKind.REASONING:
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        case octavo.PartKind.TOOL_CALL:
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _input(block.text)}


def block_event(change: Change) -> dict[str, Any]:
    """The event of one step of a block."""
    block = change.block
    place = {"index": block.index}
    match change.step:
        case Step.OPENED:
            empty = Block(block.index, block.kind, block.name, block.call_id)
            return {"type": "content_block_start", **place, "content_block": content_block(empty)}
        case Step.WRITTEN:
            return {"type": "content_block_delta", **place, "delta": _delta(block.kind, change.text)}
        case Step.CLOSED:
            return {"type": "content_block_stop", **place}


def _delta(kind: octavo.PartKind, text: str) -> dict[str, Any]:
    match kind:
        case octavo.PartKind.CONTENT:
            return {"type": "text_delta", "text": text}
        case octavo.PartKind.REASONING:
            return {"type": "thinking_delta", "thinking": text}
        case octavo.PartKind.TOOL_CALL:
            return {"type": "input_json_delta", "partial_json": text}


def _input(text: str) -> dict[str, Any]:
    """What the model wrote need not be an object, nor JSON at all, where the call was not forced or was cut off."""
    try:
        value = octavo.parse_json("input", text or "{}")
    except octavo.InvalidRequest:
        value = None
    return value if isinstance(value, dict) and not is_too_deep(value) else {INVALID_JSON: text}
