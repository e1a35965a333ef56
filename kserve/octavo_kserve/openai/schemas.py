"""What the server's OpenAPI document says of these routes: the bodies that they read.

For readers and tools only; what is allowed is decided where a field is read. Knows no route.
"""

from __future__ import annotations

from typing import Any

from octavo_kserve.openai.chat_request import MOST_TOP_LOGPROBS, TEMPLATE_KWARGS

Schema = dict[str, Any]


def documented(kind: str = "") -> dict[str, Any]:
    """Arguments of a route whose body is of this kind; "" for a route without a body."""
    statuses = (400, 404, 408, 413, 422, 429, 500, 503) if kind else (404, 503)
    found: dict[str, Any] = {"responses": {status: _error(status) for status in statuses}, "response_model": None}
    if kind:
        properties, required = BODIES[kind]
        schema = {"type": "object", "properties": properties, "required": required}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        found["openapi_extra"] = {"requestBody": body}
    return found


def _error(status: int) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object", "required": ["error"]}}}
    return {"description": _STATUSES[status], "content": content}


def _nullable(**schema: Any) -> Schema:
    return schema | {"type": [schema["type"], "null"]}


def _number(low: float, high: float) -> Schema:
    return _nullable(type="number", minimum=low, maximum=high)


def _integer(low: int, high: int | None = None) -> Schema:
    return _nullable(type="integer", minimum=low) | ({} if high is None else {"maximum": high})


def _list(**items: Any) -> Schema:
    return _nullable(type="array", items=items)


_FLAG = _nullable(type="boolean")
_TEXT = _nullable(type="string")
_OBJECT = _nullable(type="object")
_TEXTS = {"anyOf": [_TEXT, _list(type="string", minLength=1)]}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}

_STATUSES = {
    400: "A field has a value that is not allowed, or the prompt is too long for the model.",
    404: "No model of this name is served.",
    408: "The request's own time limit ran out.",
    413: "The body is too large.",
    422: "A field is given without the one that it belongs to, or `seed` is not of 64 bits.",
    429: "The queue is full; Retry-After says when to try again.",
    500: "The request broke inside the engine.",
    503: "The model is not ready, or the server is shutting down.",
}

_SAMPLING: dict[str, Schema] = {
    "n": _integer(1, 128),
    "temperature": _number(0, 2),
    "top_p": _nullable(type="number", exclusiveMinimum=0, maximum=1),
    "top_k": _integer(-1),
    "min_p": _number(0, 1),
    "repetition_penalty": _nullable(type="number", exclusiveMinimum=0),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "seed": _integer(-(2**63), 2**63 - 1),
    "max_tokens": _integer(1),
    "min_tokens": _integer(0),
    "stop": _TEXTS,
    "stop_token_ids": _list(type="integer", minimum=0),
    "include_stop_str_in_output": _FLAG,
    "ignore_eos": _FLAG,
    "prompt_logprobs": _integer(-1),
    "logit_bias": _OBJECT,
    "allowed_token_ids": _list(type="integer", minimum=0),
    "bad_words": _list(type="string", minLength=1),
    "skip_special_tokens": _FLAG,
    "truncate_prompt_tokens": _integer(-1),
}
_CALL: dict[str, Schema] = {
    "model": _TEXT,
    "stream": _FLAG,
    "stream_options": _nullable(
        type="object", properties={"include_usage": _FLAG, "continuous_usage_stats": _FLAG}
    ),
    "echo": _FLAG,
    "user": _TEXT,
    "request_id": _TEXT,
    "priority": _nullable(type="integer"),
    "cache_salt": _TEXT,
    "deadline_s": _nullable(type="number", exclusiveMinimum=0),
    "return_token_ids": _FLAG,
    "response_format": _nullable(type="object", properties={"type": {"const": "text"}}),
}  # fmt: skip
_MESSAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {"role": {"type": "string", "minLength": 1}, "content": {"type": ["string", "array", "null"]}},
        "required": ["role"],
    },
}
_CHAT_PROMPT: dict[str, Schema] = {
    "tools": _list(type="object"),
    "tool_choice": {"enum": ["none", "auto", None]},
    "add_generation_prompt": _FLAG,
    "continue_final_message": _FLAG,
    "chat_template_kwargs": _nullable(type="object", propertyNames={"enum": sorted(TEMPLATE_KWARGS)}),
    "reasoning_effort": _TEXT,
}
_CHAT: dict[str, Schema] = {
    "messages": _MESSAGES,
    **_CHAT_PROMPT,
    **_CALL,
    **_SAMPLING,
    "max_completion_tokens": _integer(1),
    "logprobs": _FLAG,
    "top_logprobs": _integer(0, MOST_TOP_LOGPROBS),
}
_PROMPT: Schema = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}
_COMPLETION: dict[str, Schema] = {
    "prompt": _PROMPT,
    **_CALL,
    **_SAMPLING,
    "best_of": _integer(1),
    "logprobs": _integer(-1),
}
_TOKENIZE: dict[str, Schema] = {
    "model": _TEXT,
    "prompt": {"type": "string", "minLength": 1},
    "messages": _MESSAGES,
    **_CHAT_PROMPT,
    "add_special_tokens": _FLAG,
    "return_token_strs": _FLAG,
}
_DETOKENIZE: dict[str, Schema] = {"model": _TEXT, "tokens": _TOKENS}

BODIES: dict[str, tuple[dict[str, Schema], list[str]]] = {
    "chat": (_CHAT, ["messages"]),
    "completion": (_COMPLETION, ["prompt"]),
    "tokenize": (_TOKENIZE, []),
    "detokenize": (_DETOKENIZE, ["tokens"]),
}
