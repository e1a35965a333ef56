"""JSON schemas of the bodies that the OpenAI routes read.

For readers and tools only; what is allowed is decided where a field is read. Knows no route.
"""

from __future__ import annotations

from typing import Any

from octavo_kserve.described import Schema, array, integer, nullable, ref
from octavo_kserve.openai.chat_request import MOST_TOP_LOGPROBS, TEMPLATE_KWARGS
from octavo_kserve.openai.completion_request import MOST_PROMPTS
from octavo_kserve.openai.request import MOST_ID_CHARACTERS
from octavo_kserve.sampling_schemas import INT32_MAX, INT64_MAX, INT64_MIN, TEXT, TOKEN_ID, sampling_schemas

_FLAG = nullable(type="boolean")
_TEXT = nullable(type="string")
_TOKENS: Schema = {"type": "array", "items": TOKEN_ID, "minItems": 1}

# What every route that generates reads.
CALL: dict[str, Schema] = {
    "model": {"anyOf": [ref("ModelName"), {"type": "null"}]},
    "stream": _FLAG,
    "user": {},
    "request_id": nullable(type="string", maxLength=MOST_ID_CHARACTERS),
    "priority": integer(INT64_MIN, INT64_MAX),
    "cache_salt": _TEXT,
    "deadline_s": nullable(type="number", minimum=0.001),
}
_CALL: dict[str, Schema] = {
    **CALL,
    "stream_options": nullable(
        type="object", properties={"include_usage": _FLAG, "continuous_usage_stats": _FLAG}
    ),
    "echo": _FLAG,
    "return_token_ids": _FLAG,
    "response_format": nullable(
        type="object",
        properties={
            "type": {"enum": ["text", "json_object", "json_schema", "structural_tag"]},
            "json_schema": {"type": "object", "properties": {"schema": {"type": "object"}}},
        },
        required=["type"],
    ),
}  # fmt: skip
_TEXT_PART: Schema = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_NAMED: dict[str, Schema] = {"name": TEXT}


def _function(properties: dict[str, Schema]) -> Schema:
    """A tool, or one that is called."""
    function = {"type": "object", "properties": properties, "required": ["name"]}
    return {
        "type": "object",
        "properties": {"type": {"const": "function"}, "function": function},
        "required": ["type", "function"],
    }


_MESSAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": TEXT | {"examples": ["system", "user", "assistant", "tool"]},
            "content": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": _TEXT_PART}]},
            "tool_calls": array(**_function(_NAMED | {"arguments": {"type": ["string", "object", "null"]}})),
        },
        "required": ["role"],
    },
}
_CHAT_PROMPT: dict[str, Schema] = {
    "tools": array(**_function(_NAMED | {"parameters": nullable(type="object")})),
    "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required", None]}, _function(_NAMED)]},
    "parallel_tool_calls": _FLAG,
    "add_generation_prompt": _FLAG,
    "continue_final_message": _FLAG,
    "chat_template_kwargs": nullable(type="object", propertyNames={"enum": sorted(TEMPLATE_KWARGS)}),
    "reasoning_effort": _TEXT,
}
_CHAT: dict[str, Schema] = {
    "messages": _MESSAGES,
    **_CHAT_PROMPT,
    **_CALL,
    **sampling_schemas(max_tokens=None),
    "max_completion_tokens": integer(1, INT32_MAX),
    "logprobs": _FLAG,
    "include_reasoning": _FLAG,
    "top_logprobs": integer(0, MOST_TOP_LOGPROBS),
}
PROMPT: Schema = {
    "anyOf": [
        TEXT,
        {"type": "array", "items": TEXT, "minItems": 1, "maxItems": MOST_PROMPTS},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1, "maxItems": MOST_PROMPTS},
    ]
}
_COMPLETION: dict[str, Schema] = {
    "prompt": PROMPT,
    **_CALL,
    **sampling_schemas(),
    "best_of": integer(1),
}
_TOKENIZE: dict[str, Schema] = {
    "model": _CALL["model"],
    "prompt": TEXT,
    "messages": _MESSAGES,
    **_CHAT_PROMPT,
    "add_special_tokens": _FLAG,
    "return_token_strs": _FLAG,
}
_DETOKENIZE: dict[str, Schema] = {"model": _CALL["model"], "tokens": _TOKENS}

_SAMPLED: dict[str, Any] = {"max_tokens": 16, "temperature": 0.7, "seed": 1}
_HELLO = {"role": "user", "content": "Hello"}
LOOK_UP = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
_TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": LOOK_UP}}]


def _body(properties: dict[str, Schema], required: list[str], *examples: dict[str, Any]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "examples": list(examples)}


BODIES: dict[str, Schema] = {
    "ChatRequest": _body(
        _CHAT,
        ["messages"],
        {"messages": [_HELLO], **_SAMPLED},
        {"messages": [_HELLO], **_SAMPLED, "stream": True},
        {"messages": [_HELLO], "tools": _TOOLS, **_SAMPLED},
    ),
    "CompletionRequest": _body(
        _COMPLETION, ["prompt"], {"prompt": "The sea", **_SAMPLED}, {"prompt": "The sea", **_SAMPLED, "stream": True}
    ),
    "TokenizeRequest": _body(_TOKENIZE, [], {"prompt": "The sea"}, {"messages": [_HELLO]})
    | {"anyOf": [{"required": ["prompt"]}, {"required": ["messages"]}]},
    "DetokenizeRequest": _body(_DETOKENIZE, ["tokens"], {"tokens": [65, 66]}),
}
