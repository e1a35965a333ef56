"""JSON schemas of the sampling parameters: names, types and defaults are SamplingParams' own.

For readers and tools only. Knows no route.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any, get_args, get_origin, get_type_hints

import octavo
from octavo_kserve.described import Schema, array, nullable

INT32_MAX = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
TOKEN_ID: Schema = {"type": "integer", "minimum": 0, "maximum": INT32_MAX}
TEXT: Schema = {"type": "string", "minLength": 1}
_KINDS = {bool: "boolean", int: "integer", float: "number"}

# What the parsers allow beyond the type; a test holds each to its parser.
BOUNDS: dict[str, Schema] = {
    "n": {"minimum": 1, "maximum": 128},
    "temperature": {"minimum": 0, "maximum": 2},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"minimum": -1, "maximum": INT32_MAX},
    "min_p": {"minimum": 0, "maximum": 1},
    "repetition_penalty": {"exclusiveMinimum": 0},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "seed": {"minimum": INT64_MIN, "maximum": INT64_MAX},
    "max_tokens": {"minimum": 1, "maximum": INT32_MAX},
    "min_tokens": {"minimum": 0, "maximum": INT32_MAX},
    "logprobs": {"minimum": -1, "maximum": INT32_MAX},
    "prompt_logprobs": {"minimum": -1, "maximum": INT32_MAX},
    "truncate_prompt_tokens": {"minimum": -1, "maximum": INT32_MAX},
}
# What a client writes is not what the field holds.
STRUCTURED: dict[str, Schema] = {
    "structured_outputs": nullable(
        type="object",
        properties={
            "json": {"type": ["object", "string", "null"]},
            "json_object": nullable(type="boolean"),
            "regex": nullable(type="string"),
            "choice": array(**TEXT),
            "grammar": nullable(type="string"),
            "structural_tag": {"type": ["object", "string", "null"]},
        },
    )
}


def sampling_schemas(**defaults: object) -> dict[str, Schema]:
    """Each parameter's schema, by name; `defaults` stand where a route has others than SamplingParams."""
    hints = get_type_hints(octavo.SamplingParams)
    found = {}
    for field in fields(octavo.SamplingParams):
        default = defaults.get(field.name, _default(field))
        schema = STRUCTURED.get(field.name) or _schema(hints[field.name]) | BOUNDS.get(field.name, {})
        found[field.name] = schema | ({} if default in (None, (), {}) else {"default": default})
    return found


def _default(field: Field[Any]) -> object:
    return None if field.default is MISSING else field.default


def _schema(hint: Any) -> Schema:
    """The schema of what a client may send for a field of this type."""
    kind = next((each for each in get_args(hint) if each is not type(None)), hint) if _is_optional(hint) else hint
    if kind in _KINDS:
        return nullable(type=_KINDS[kind])
    if get_origin(kind) is dict:
        return nullable(type="object", additionalProperties={"type": "number"})
    return array(**TOKEN_ID) if get_args(kind)[0] is int else {"anyOf": [nullable(type="string"), array(**TEXT)]}


def _is_optional(hint: Any) -> bool:
    return type(None) in get_args(hint)
