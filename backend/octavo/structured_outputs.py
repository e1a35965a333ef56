"""StructuredOutputs: what a text must look like, and the one reader of every spelling in which clients ask for it.

Knows no grammar engine and no vocabulary: whether the grammar can be compiled is found out by a process of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.errors import InvalidRequest
from octavo.parsing import parse_bool, parse_json, parse_list, parse_mapping, parse_text

Kind = Literal["json", "json_object", "regex", "choice", "grammar", "structural_tag"]

# Nobody writes a longer one; whatever could be done with it would take too long.
MAX_CHARACTERS = 1 << 18
_MAX_CHOICES = 1 << 13
# The schema's own key for how it is written out: llguidance's name.
SCHEMA_OPTIONS = "x-guidance"


@dataclass(frozen=True, slots=True)
class StructuredOutputs:
    """A grammar as a client wrote it; equal ones share what is compiled.

    text: the JSON schema, the regular expression, the choices as a JSON list, the grammar (Lark or GBNF), or the
    structural tag as JSON; empty for json_object. `parameter` is what a refusal calls it, and `shown` what it shows of
    a grammar that was made of something else; `parts` are both for each JSON schema in such a grammar, in their order.
    """

    kind: Kind
    text: str
    parameter: str = field(default="structured_outputs", compare=False)
    shown: str = field(default="", compare=False)
    parts: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if len(self.text) > MAX_CHARACTERS:
            raise InvalidRequest(self.parameter, self.shown or self.text[:80], f"at most {MAX_CHARACTERS} characters")

    def refusal(self, why: str) -> InvalidRequest:
        """The error for a grammar that cannot be used; `why` may be `of_part`."""
        part = _OF_PART.match(why)
        if part is None:
            return InvalidRequest(self.parameter, self.shown or self.text or self.kind, why)
        parameter, shown = self.parts[int(part[1])]
        return InvalidRequest(parameter, shown, why[part.end() :])


def of_part(number: int, why: str) -> str:
    """`why` about one part of a grammar: it comes from another process, as a text."""
    return f"part {number}: {why}"


_OF_PART = re.compile(r"part (\d+): ")


def read_structured_outputs(mapping: Mapping[str, object]) -> StructuredOutputs | None:
    """What a request's parameters ask for, in whichever spelling; None where they ask for nothing.

    Looks only at the keys of STRUCTURED_OUTPUT_NAMES. Raises InvalidRequest that names the parameter at fault, or both
    where two of them ask for something.
    """
    asked = [
        found
        for name, read in _SPELLINGS.items()
        if mapping.get(name) is not None and (found := read(name, mapping[name])) is not None
    ]
    if len(asked) > 1:
        first, second = asked[:2]
        raise InvalidRequest(second.parameter, second.text, f"nothing here, since {first.parameter} is given too")
    pattern = mapping.get(_WHITESPACE)
    if pattern is None or not asked:
        return asked[0] if asked else None
    return _with_options(asked[0], {"whitespace_pattern": parse_text(_WHITESPACE, pattern)})


def parse_structured_outputs(name: str, value: object) -> StructuredOutputs | None:
    """One that is made already, or vLLM's object of exactly one of json, json_object, regex, choice, grammar and
    structural_tag, which may be a string of JSON."""
    if isinstance(value, StructuredOutputs):
        return value
    given = parse_mapping(name, _from_text(name, value))
    unknown = [key for key in given if key not in _KINDS and key not in _OPTIONS and not key.startswith("_")]
    if unknown:
        raise InvalidRequest(name, unknown[0], "one of " + ", ".join([*_KINDS, *_OPTIONS]))
    options = {key: given[key] for key in _OPTIONS if given.get(key) is not None}
    asked = [
        found
        for kind in _KINDS
        if given.get(kind) is not None and (found := _read_kind(f"{name}.{kind}", kind, given[kind])) is not None
    ]
    if len(asked) > 1 or all(given.get(kind) is None for kind in _KINDS):
        raise InvalidRequest(name, [found.kind for found in asked], "exactly one of " + ", ".join(_KINDS))
    written: dict[str, Any] = {}
    for key, option in options.items():
        written |= _OPTIONS[key](f"{name}.{key}", option)
    return _with_options(asked[0], written) if asked else None


def _response_format(name: str, value: object) -> StructuredOutputs | None:
    """OpenAI's object: {"type": "json_schema", "json_schema": {"schema": {...}}} and its siblings."""
    given = _from_text(name, value)
    kind = given.get("type") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or kind not in ("text", "json_object", "json_schema", "structural_tag"):
        raise InvalidRequest(name, value, 'an object like {"type": "json_schema", "json_schema": {"schema": {...}}}')
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputs("json_object", "", name)
    if kind == "structural_tag":
        return _read_kind(name, "structural_tag", {key: part for key, part in given.items() if key != "type"})
    described = parse_mapping(f"{name}.json_schema", given.get("json_schema"))
    return _read_kind(f"{name}.json_schema.schema", "json", described.get("schema"))


def _read_kind(name: str, kind: Kind, value: object) -> StructuredOutputs | None:
    if kind == "json_object":
        return StructuredOutputs(kind, "", name) if parse_bool(name, value) else None
    if kind in ("regex", "grammar"):
        return StructuredOutputs(kind, parse_text(name, value), name)
    given = _from_text(name, value)
    if kind == "choice":
        choices = parse_list(name, given, parse_text, _MAX_CHOICES)
        if not choices:
            raise InvalidRequest(name, value, "at least one choice")
        given = list(dict.fromkeys(choices))
    elif not (isinstance(given, bool) and kind == "json"):
        parse_mapping(name, given)
    return StructuredOutputs(kind, _to_text(name, given), name)


def _from_text(name: str, value: object) -> Any:
    if not isinstance(value, str):
        return value
    if len(value) > MAX_CHARACTERS:
        raise InvalidRequest(name, value[:80], f"at most {MAX_CHARACTERS} characters")
    return parse_json(name, value)


def _to_text(name: str, value: object) -> str:
    try:
        # The order of keys is kept: it is the order in which properties are written.
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(name, type(value).__name__, "what JSON can hold, not nested too deeply") from None


def _with_options(asked: StructuredOutputs, options: Mapping[str, object]) -> StructuredOutputs:
    """The same, its JSON written as the options say."""
    if not options:
        return asked
    if asked.kind not in ("json", "json_object"):
        raise InvalidRequest(asked.parameter, next(iter(options)), f"no option for JSON beside {asked.kind}")
    schema: Any = json.loads(asked.text) if asked.text else {"type": "object"}
    if isinstance(schema, bool):
        return asked
    schema[SCHEMA_OPTIONS] = {**parse_mapping(SCHEMA_OPTIONS, schema.get(SCHEMA_OPTIONS, {})), **options}
    return StructuredOutputs("json", _to_text(asked.parameter, schema), asked.parameter)


def _only_false(name: str, value: object) -> dict[str, object]:
    if parse_bool(name, value):
        raise InvalidRequest(name, value, "false: the schema itself has to say so")
    return {}


_KINDS: tuple[Kind, ...] = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
_OPTIONS: dict[str, Callable[[str, object], dict[str, object]]] = {
    "disable_any_whitespace": lambda name, value: {"whitespace_flexible": False} if parse_bool(name, value) else {},
    "whitespace_pattern": lambda name, value: {"whitespace_pattern": parse_text(name, value)},
    "disable_additional_properties": _only_false,
    # There is one backend, and it falls back on nothing.
    "disable_fallback": lambda name, value: {},
    "backend": lambda name, value: {},
}
_WHITESPACE = "guided_whitespace_pattern"


def _reader(kind: Kind) -> Callable[[str, object], StructuredOutputs | None]:
    return lambda name, value: _read_kind(name, kind, value)


_SPELLINGS: dict[str, Callable[[str, object], StructuredOutputs | None]] = {
    "structured_outputs": parse_structured_outputs,
    "response_format": _response_format,
    "guided_decoding": parse_structured_outputs,
    **{f"guided_{kind}": _reader(kind) for kind in _KINDS if kind != "structural_tag"},
}
STRUCTURED_OUTPUT_NAMES = frozenset({*_SPELLINGS, _WHITESPACE})
