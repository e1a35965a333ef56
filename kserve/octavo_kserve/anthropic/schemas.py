"""JSON schemas of the bodies that /messages reads and of what it answers; a test holds real ones to them.

For readers and tools only. Knows no route.
"""

from __future__ import annotations

from typing import Any

from octavo_kserve.described import Schema, array, integer, nullable, record
from octavo_kserve.openai.schemas import CALL, LOOK_UP
from octavo_kserve.replies import ANTHROPIC_TYPES
from octavo_kserve.sampling_schemas import INT32_MAX, sampling_schemas

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NAME: Schema = _TEXT | {"minLength": 1}
_TEXT_BLOCK = record({"type": {"const": "text"}, "text": _TEXT})
_TEXTS: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT_BLOCK}]}
_THINKING = record({"type": {"const": "thinking"}, "thinking": _TEXT, "signature": _TEXT}, ["signature"])
_TOOL_USE = record({"type": {"const": "tool_use"}, "id": _TEXT, "name": _NAME, "input": {"type": "object"}})
_TOOL_RESULT = record(
    {"type": {"const": "tool_result"}, "tool_use_id": _TEXT, "content": _TEXTS, "is_error": {"type": "boolean"}},
    ["content", "is_error"],
)


def _turn(role: str, *blocks: Schema) -> Schema:
    content: Schema = {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [_TEXT_BLOCK, *blocks]}, "minItems": 1}]}
    return record({"role": {"const": role}, "content": content})


_TURNS = [_turn("user", _TOOL_RESULT), _turn("assistant", _THINKING, _TOOL_USE), _turn("system")]
_TOOL = record(
    {"name": _NAME, "description": nullable(type="string"), "input_schema": {"type": "object"}}, ["description"]
)
_FORMAT = record({"type": {"enum": ["json_schema", "json_object"]}, "schema": {"type": "object"}}, ["schema"])
_PROMPT: dict[str, Schema] = {
    "model": CALL["model"],
    "messages": {"type": "array", "minItems": 1, "items": {"anyOf": _TURNS}},
    "system": {"anyOf": [_TEXTS, {"type": "null"}]},
    "tools": array(**_TOOL),
    "tool_choice": nullable(
        type="object",
        properties={
            "type": {"enum": ["auto", "any", "tool", "none"]},
            "disable_parallel_tool_use": nullable(type="boolean"),
        },
        required=["type"],
    ),
    "thinking": nullable(
        type="object",
        properties={"type": {"enum": ["enabled", "disabled", "adaptive"]}, "budget_tokens": integer(1, INT32_MAX)},
        required=["type"],
    ),
    "context_management": nullable(
        type="object", properties={"edits": array(**record({"type": _TEXT, "keep": {"const": "all"}}))}
    ),
    "output_config": nullable(
        type="object", properties={"effort": nullable(type="string"), "format": nullable(**_FORMAT)}
    ),
}  # fmt: skip
# They are spelled in another way here, or not there.
_NOT_HERE = {"n", "max_tokens", "stop", "logprobs", "prompt_logprobs"}
_SAMPLING = {name: schema for name, schema in sampling_schemas().items() if name not in _NOT_HERE}
_ASKED: dict[str, Schema] = {
    **_PROMPT,
    **CALL,
    **_SAMPLING,
    "max_tokens": {"type": "integer", "minimum": 1, "maximum": INT32_MAX},
    "stop_sequences": array(**_TEXT),
}
_HELLO = {"role": "user", "content": "Hello"}
_ASK: dict[str, Any] = {"messages": [_HELLO], "max_tokens": 16, "temperature": 0.7, "seed": 1}
_TOOLS = [{"name": "look_up", "input_schema": LOOK_UP}]

_BLOCK: Schema = {"anyOf": [_TEXT_BLOCK, _THINKING | {"required": ["type", "thinking", "signature"]}, _TOOL_USE]}
_USAGE = record(
    {
        "input_tokens": _COUNT,
        "cache_creation_input_tokens": {"const": 0},
        "cache_read_input_tokens": _COUNT,
        "output_tokens": _COUNT,
    }
)
_ENDING = {
    "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use", None]},
    "stop_sequence": nullable(**_TEXT),
}
_MESSAGE = record(
    {
        "id": _TEXT,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": _TEXT,
        "content": {"type": "array", "items": _BLOCK},
        **_ENDING,
        "usage": _USAGE,
    }
)
_ERROR_TYPES = sorted({*ANTHROPIC_TYPES.values(), "invalid_request_error", "api_error"})
_ERROR_MEMBERS = {"type": {"enum": _ERROR_TYPES}, "message": _TEXT, "details": {"type": "object"}}
_ERROR = record({"type": {"const": "error"}, "error": record(_ERROR_MEMBERS, ["details"])})
_DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
_DELTA: Schema = {
    "anyOf": [record({"type": {"const": kind}, member: _TEXT}) for kind, member in _DELTAS.items()]
}  # fmt: skip


def _event(kind: str, **members: Schema) -> Schema:
    return record({"type": {"const": kind}} | members)


_EVENTS = [
    _event("message_start", message=_MESSAGE),
    _event("content_block_start", index=_COUNT, content_block=_BLOCK),
    _event("content_block_delta", index=_COUNT, delta=_DELTA),
    _event("content_block_stop", index=_COUNT),
    _event("message_delta", delta=record(_ENDING), usage=_USAGE),
    _event("message_stop"),
    _ERROR,
]
ANTHROPIC_SCHEMAS: dict[str, Schema] = {
    "AnthropicRequest": record(
        _ASKED,
        set(_ASKED) - {"messages", "max_tokens"},
        examples=[_ASK, _ASK | {"stream": True}, _ASK | {"tools": _TOOLS}],
    ),
    "AnthropicCountRequest": record(_PROMPT, set(_PROMPT) - {"messages"}, examples=[{"messages": [_HELLO]}]),
    "AnthropicMessage": _MESSAGE,
    "AnthropicEvent": {"anyOf": _EVENTS},
    "AnthropicCount": record({"input_tokens": _COUNT}),
    "AnthropicError": _ERROR,
}
