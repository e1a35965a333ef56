"""JSON schemas of the body that /responses reads and of what it answers; a test holds real ones to them.

For readers and tools only. Knows no route.
"""

from __future__ import annotations

from typing import Any

from octavo_kserve.described import Schema, array, integer, nullable, record
from octavo_kserve.openai.chat_request import MOST_TOP_LOGPROBS
from octavo_kserve.openai.schemas import CALL, LOOK_UP
from octavo_kserve.responses.items import COMPLETED, IN_PROGRESS, INCOMPLETE
from octavo_kserve.responses.request import LOGPROBS
from octavo_kserve.responses.writer import FAILED
from octavo_kserve.sampling_schemas import INT32_MAX, sampling_schemas

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_ITEM_STATUS: Schema = {"enum": [IN_PROGRESS, COMPLETED, INCOMPLETE]}
_PART = record({"type": {"enum": ["input_text", "output_text"]}, "text": _TEXT})
_CONTENT: Schema = {"anyOf": [_TEXT, {"type": "array", "items": _PART}]}
_FUNCTION = {"type": {"const": "function"}, "name": _TEXT | {"minLength": 1}}
_INPUT_ITEM: Schema = {
    "anyOf": [
        record(
            {
                "type": {"const": "message"},
                "role": {"enum": ["user", "assistant", "system", "developer"]},
                "content": _CONTENT,
            },
            ["type"],
        ),
        record(
            {
                "type": {"const": "function_call"},
                "call_id": _TEXT,
                "name": _TEXT | {"minLength": 1},
                "arguments": _TEXT | {"contentMediaType": "application/json"},
            }
        ),
        record({"type": {"const": "function_call_output"}, "call_id": _TEXT, "output": _CONTENT}),
        record(
            {"type": {"const": "reasoning"}, "summary": {"type": "array"}, "content": {"type": "array"}}, ["content"]
        ),
    ]
}
_FORMAT = record({"type": {"enum": ["text", "json_object", "json_schema"]}, "schema": {"type": "object"}}, ["schema"])
# They are spelled in another way here, or not there.
_NOT_HERE = {"n", "max_tokens", "logprobs", "prompt_logprobs"}
_SAMPLING = {name: schema for name, schema in sampling_schemas().items() if name not in _NOT_HERE}
_ASKED: dict[str, Schema] = {
    "input": {"anyOf": [_TEXT, {"type": "array", "items": _INPUT_ITEM, "minItems": 1}]},
    "instructions": nullable(type="string"),
    "max_output_tokens": integer(1, INT32_MAX),
    "tools": array(**record(_FUNCTION | {"parameters": nullable(type="object")}, ["parameters"])),
    "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required", None]}, record(_FUNCTION)]},
    "parallel_tool_calls": nullable(type="boolean"),
    "text": nullable(type="object", properties={"format": nullable(**_FORMAT)}),
    "reasoning": nullable(type="object", properties={"effort": nullable(type="string")}),
    "include": array(**{**_TEXT, "examples": [LOGPROBS]}),
    "top_logprobs": integer(0, MOST_TOP_LOGPROBS),
    "truncation": {"enum": ["disabled", None]},
    "metadata": nullable(type="object"),
    **CALL,
    **_SAMPLING,
}
_ASK: dict[str, Any] = {"input": "Hello", "max_output_tokens": 16, "temperature": 0.7, "seed": 1}
_TOOL = {"type": "function", "name": "look_up", "parameters": LOOK_UP}

_OUTPUT_TEXT = record(
    {
        "type": {"const": "output_text"},
        "text": _TEXT,
        "annotations": {"type": "array", "maxItems": 0},
        "logprobs": {"type": "array", "items": record({"token": _TEXT, "logprob": {"type": "number", "maximum": 0}})},
    }
)
_REASONING_TEXT = record({"type": {"const": "reasoning_text"}, "text": _TEXT})
_OUTPUT_PART: Schema = {"anyOf": [_OUTPUT_TEXT, _REASONING_TEXT]}
_OUTPUT_ITEM: Schema = {
    "anyOf": [
        record(
            {
                "type": {"const": "message"},
                "id": _TEXT,
                "status": _ITEM_STATUS,
                "role": {"const": "assistant"},
                "content": {"type": "array", "items": _OUTPUT_TEXT, "maxItems": 1},
            }
        ),
        record(
            {
                "type": {"const": "reasoning"},
                "id": _TEXT,
                "status": _ITEM_STATUS,
                "summary": {"type": "array", "maxItems": 0},
                "content": {"type": "array", "items": _REASONING_TEXT, "maxItems": 1},
            }
        ),
        record(
            {
                "type": {"const": "function_call"},
                "id": _TEXT,
                "status": _ITEM_STATUS,
                "call_id": _TEXT,
                "name": _TEXT,
                "arguments": _TEXT,
            }
        ),
    ]
}
_USAGE = record(
    {
        "input_tokens": _COUNT,
        "input_tokens_details": record({"cached_tokens": _COUNT, "cache_write_tokens": _COUNT}),
        "output_tokens": _COUNT,
        "output_tokens_details": record({"reasoning_tokens": _COUNT}),
        "total_tokens": _COUNT,
    }
)
_RESPONSE = record(
    {
        "id": _TEXT,
        "object": {"const": "response"},
        "created_at": _COUNT,
        "status": {"enum": [IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED]},
        "error": {"anyOf": [record({"code": _TEXT, "message": _TEXT}), {"type": "null"}]},
        "incomplete_details": {"anyOf": [record({"reason": {"const": "max_output_tokens"}}), {"type": "null"}]},
        "model": _TEXT,
        "output": {"type": "array", "items": _OUTPUT_ITEM},
        "usage": {"anyOf": [_USAGE, {"type": "null"}]},
        "store": {"const": False},
    }
)
_PLACE = {"item_id": _TEXT, "output_index": _COUNT}
_IN_PART = _PLACE | {"content_index": {"const": 0}}


def _event(kind: str, **members: Schema) -> Schema:
    return record({"type": {"const": f"response.{kind}"}, "sequence_number": _COUNT} | members)


_EVENTS = [
    *(_event(kind, response=_RESPONSE) for kind in ("created", IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED)),
    *(_event(f"output_item.{step}", output_index=_COUNT, item=_OUTPUT_ITEM) for step in ("added", "done")),
    *(_event(f"content_part.{step}", **_IN_PART, part=_OUTPUT_PART) for step in ("added", "done")),
    _event("output_text.delta", **_IN_PART, delta=_TEXT, logprobs={"type": "array"}),
    _event("output_text.done", **_IN_PART, text=_TEXT, logprobs={"type": "array"}),
    _event("reasoning_text.delta", **_IN_PART, delta=_TEXT),
    _event("reasoning_text.done", **_IN_PART, text=_TEXT),
    _event("function_call_arguments.delta", **_PLACE, delta=_TEXT),
    _event("function_call_arguments.done", **_PLACE, name=_TEXT, arguments=_TEXT),
]
RESPONSE_SCHEMAS: dict[str, Schema] = {
    "ResponseRequest": record(
        _ASKED, set(_ASKED) - {"input"}, examples=[_ASK, _ASK | {"stream": True}, _ASK | {"tools": [_TOOL]}]
    ),
    "Response": _RESPONSE,
    "ResponseEvent": {"anyOf": _EVENTS},
}
