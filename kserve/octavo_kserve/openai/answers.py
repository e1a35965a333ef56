"""JSON schemas of what the OpenAI routes answer, whole and in chunks; a test holds real answers to them.

For readers and tools only. Knows no route.
"""

from __future__ import annotations

from typing import Any

import octavo
from octavo_kserve.described import Schema, array, nullable, record, ref
from octavo_kserve.openai.chat_response import TOOL_CALLS

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_LOGPROB: Schema = {"type": "number", "maximum": 0}
_IDS: Schema = {"type": "array", "items": _COUNT}

_FINISH_REASONS = [octavo.FinishReason.STOP.value, octavo.FinishReason.LENGTH.value]
_ENDING: dict[str, Schema] = {
    "finish_reason": {"enum": [*_FINISH_REASONS, None]},
    "stop_reason": {"type": ["string", "integer", "null"]},
    "token_ids": _IDS,
}
_CANDIDATE = {"token": _TEXT, "logprob": _LOGPROB, "bytes": array(**_COUNT)}
_CHAT_LOGPROBS = record(
    {
        "content": {
            "type": "array",
            "items": record(_CANDIDATE | {"top_logprobs": {"type": "array", "items": record(_CANDIDATE)}}),
        },
        "refusal": {"type": "null"},
    }
)
_COMPLETION_LOGPROBS = record(
    {
        "text_offset": {"type": "array", "items": _COUNT},
        "token_logprobs": {"type": "array", "items": nullable(**_LOGPROB)},
        "tokens": {"type": "array", "items": _TEXT},
        "top_logprobs": {"type": "array", "items": nullable(type="object", additionalProperties=_LOGPROB)},
    }
)
_PROMPT_LOGPROBS = array(
    **nullable(
        type="object",
        additionalProperties=record({"logprob": _LOGPROB, "rank": _COUNT, "decoded_token": _TEXT}),
    )
)
_ABOUT_PROMPT = {"prompt_token_ids": _IDS, "prompt_logprobs": _PROMPT_LOGPROBS}
_USAGE = record(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": record({"cached_tokens": _COUNT}),
    }
)
_FUNCTION = record({"name": _TEXT, "arguments": _TEXT})
_TOOL_CALL = {"id": _TEXT, "type": {"const": "function"}, "function": _FUNCTION}
_MESSAGE = record(
    {
        "role": {"const": "assistant"},
        "content": nullable(**_TEXT),
        "refusal": {"type": "null"},
        "reasoning_content": _TEXT,
        "tool_calls": array(**record(_TOOL_CALL)),
    },
    ("reasoning_content", "tool_calls"),
)
_TOOL_CALL_DELTA = record(
    _TOOL_CALL | {"index": _COUNT, "function": record(_FUNCTION["properties"], ("name",))}, ("id", "type")
)
_DELTA = record(
    {
        "role": {"const": "assistant"},
        "content": _TEXT,
        "reasoning_content": _TEXT,
        "tool_calls": array(**_TOOL_CALL_DELTA),
    },
    ("role", "content", "reasoning_content", "tool_calls"),
)
_ASKED_FOR = ("token_ids", *_ABOUT_PROMPT)


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _or_error(schema: Schema) -> Schema:
    """An error in mid-stream is an event as well."""
    return {"anyOf": [schema, ref("Error")]}


def _envelope(kind: str, choice: dict[str, Schema], **more: Schema) -> Schema:
    choices = {"type": "array", "items": record({"index": _COUNT} | choice, (*_ASKED_FOR, "stop_reason"))}
    properties = {"id": _TEXT, "object": {"const": kind}, "created": _COUNT, "model": _TEXT, "choices": choices}
    return record(properties | more, (*_ABOUT_PROMPT, *(["usage"] if more.get("usage") != _USAGE else [])))


_CHOICE = {"text": _TEXT, "logprobs": _or_null(_COMPLETION_LOGPROBS), **_ENDING, **_ABOUT_PROMPT}
_CHAT_CHOICE = {
    "logprobs": _or_null(_CHAT_LOGPROBS),
    **_ENDING,
    "finish_reason": {"enum": [*_FINISH_REASONS, TOOL_CALLS, None]},
}
_CARD = {
    "id": _TEXT,
    "object": {"const": "model"},
    "created": _COUNT,
    "owned_by": _TEXT,
    "root": _TEXT,
    "parent": {"type": ["string", "null"]},
    "max_model_len": nullable(**_COUNT),
    "name": _TEXT,
    "ready": {"type": "boolean"},
}
_ERROR = record(
    {
        "message": _TEXT,
        "type": _TEXT,
        "param": {"type": ["string", "null"]},
        "code": _TEXT,
    }
)
_DETAIL = array(**record({"loc": {"type": "array"}, "msg": _TEXT, "type": _TEXT}))

ANSWERS: dict[str, Any] = {
    "Chat": _envelope("chat.completion", {"message": _MESSAGE} | _CHAT_CHOICE, usage=_USAGE, **_ABOUT_PROMPT),
    "ChatChunk": _or_error(
        _envelope("chat.completion.chunk", {"delta": _DELTA} | _CHAT_CHOICE, usage=_or_null(_USAGE), **_ABOUT_PROMPT)
    ),
    "Completion": _envelope("text_completion", _CHOICE, usage=_USAGE),
    "CompletionChunk": _or_error(_envelope("text_completion", _CHOICE, usage=_or_null(_USAGE))),
    "Model": record(_CARD),
    "ModelList": record(
        {
            "object": {"const": "list"},
            "data": {"type": "array", "items": ref("Model")},
            "models": {"type": "array", "items": _TEXT},
        }
    ),
    "Tokens": record(
        {"count": _COUNT, "max_model_len": nullable(**_COUNT), "tokens": _IDS, "token_strs": array(**_TEXT)}
    ),
    "Text": record({"prompt": _TEXT}),
    "Error": record({"error": _ERROR, "detail": _DETAIL}, ["detail"]),
}
