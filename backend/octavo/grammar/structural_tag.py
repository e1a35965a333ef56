"""Structural tags as a Lark grammar: free text in which certain beginnings must be followed by certain content.

Reads the older form (structures and triggers) and the newer one (format). Of the vocabulary it knows special tokens:
what has one may be written by it or in letters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from octavo.structured_outputs import SCHEMA_OPTIONS

# A small model may go on with white space for ever: as much as pretty printing takes, and no more.
_WHITESPACE = r"[ \t\n\r]{1,24}"
_TEXT = "TEXT: /(.|\\n)*/"
_DEEPEST = 32


def lark_of_structural_tag(described: Mapping[str, Any], special_tokens: Mapping[str, int]) -> str:
    """The rules of a grammar whose start is `start`. special_tokens: id by text.

    Raises ValueError that says what is wrong.
    """
    if "format" in described:
        wanted = described["format"]
    elif "structures" in described:
        tags = [
            {**part, "content": {"type": "json_schema", "json_schema": part.get("schema", {})}}
            for part in _list(described, "structures")
        ]
        wanted = {"type": "triggered_tags", "triggers": _list(described, "triggers"), "tags": tags}
    else:
        raise ValueError("it has neither 'format' nor 'structures'")
    rules = _Rules(special_tokens)
    start = rules.expression(wanted)
    return "\n".join([f"start: {start}", *rules.lines, _TEXT])


class _Rules:
    """The rules made so far. Each kind of format gives an expression that may stand in another rule."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self.lines: list[str] = []
        self._special_tokens = special_tokens
        self._depth = 0

    def expression(self, wanted: Any) -> str:
        kind = wanted.get("type") if isinstance(wanted, Mapping) else None
        make = self._makers().get(str(kind))
        if make is None:
            raise ValueError(f"format {kind!r} is not supported; known are {', '.join(self._makers())}")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        made = make(wanted)
        self._depth -= 1
        return made

    def _makers(self) -> dict[str, Callable[[Mapping[str, Any]], str]]:
        return {
            "const_string": lambda part: self._literal(_string(part, "value")),
            "json_schema": self._json_schema,
            "any_text": lambda part: "TEXT",
            "regex": lambda part: f"/{_slashed(_string(part, 'pattern'))}/",
            "sequence": lambda part: "(" + " ".join(map(self.expression, _list(part, "elements"))) + ")",
            "or": lambda part: "(" + " | ".join(map(self.expression, _list(part, "elements"))) + ")",
            "tag": lambda part: self._tag(part, self._literal(_string(part, "begin"))),
            "triggered_tags": self._triggered_tags,
            "tags_with_separator": self._tags_with_separator,
        }

    def _rule(self, body: str, options: str = "") -> str:
        name = f"part_{len(self.lines)}"
        self.lines.append(f"{name}{options}: {body}")
        return name

    def _literal(self, text: str) -> str:
        """Exactly this text."""
        found = re.split(self._special_texts, text) if self._special_tokens else [text]
        parts = [
            f"({_quoted(part)} | <[{self._special_tokens[part]}]>)" if part in self._special_tokens else _quoted(part)
            for part in found
            if part
        ]
        return " ".join(parts) or '""'

    @cached_property
    def _special_texts(self) -> re.Pattern[str]:
        longest_first = sorted(self._special_tokens, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")

    def _text_until(self, text: str) -> str:
        """Any text up to this one, and this one."""
        spelled = self._rule(f"TEXT {_quoted(text)}", "[lazy]")
        special = next((each for each in self._special_tokens if text.startswith(each)), None)
        if special is None:
            return spelled
        rest = self._literal(text[len(special) :])
        return f"({spelled} | {self._rule('TEXT')} <[{self._special_tokens[special]}]> {rest})"

    def _json_schema(self, part: Mapping[str, Any]) -> str:
        schema = part.get("json_schema", part.get("schema", {}))
        return self._rule("%json " + json.dumps(strict_schema(schema)))

    def _tag(self, part: Mapping[str, Any], begin: str) -> str:
        content = part.get("content")
        ends = part.get("end", "")
        ends = [ends] if isinstance(ends, str) else ends
        if not isinstance(ends, list) or not ends or not all(isinstance(end, str) for end in ends):
            raise ValueError("'end' of a tag must be a string or a list of strings")
        if isinstance(content, Mapping) and content.get("type") == "any_text" and all(ends):
            # Text up to the first end, else it would swallow it.
            return f"({begin} ({' | '.join(map(self._text_until, ends))}))"
        return f"({begin} {self.expression(content)} ({' | '.join(map(self._literal, ends))}))"

    def _triggered_tags(self, part: Mapping[str, Any]) -> str:
        triggers = [trigger for trigger in _list(part, "triggers") if isinstance(trigger, str) and trigger]
        tags = []
        for tag in _list(part, "tags"):
            begin = _string(tag, "begin")
            trigger = next((t for t in triggers if begin.startswith(t)), None)
            if trigger is None:
                raise ValueError(f"the tag {begin!r} begins with none of the triggers")
            special = next((text for text in self._special_tokens if begin.startswith(text)), "")
            if len(special) > len(trigger) and special.startswith(trigger):
                trigger = special
            tags.append(self._tag(tag, f"{self._text_until(trigger)} {self._literal(begin[len(trigger) :])}"))
        either = "(" + " | ".join(tags) + ")"
        if part.get("stop_after_first"):
            return either if part.get("at_least_one") else f"({either} | TEXT)"
        return f"({either}{'+' if part.get('at_least_one') else '*'} {self._rule('TEXT')})"

    def _tags_with_separator(self, part: Mapping[str, Any]) -> str:
        tags = [self._tag(tag, self._literal(_string(tag, "begin"))) for tag in _list(part, "tags")]
        either = "(" + " | ".join(tags) + ")"
        more = "" if part.get("stop_after_first") else f" ({self._literal(_string(part, 'separator'))} {either})*"
        return f"({either}{more})" if part.get("at_least_one") else f"({either}{more})?"


def strict_schema(schema: Any) -> Any:
    """The schema, with nothing in it that would let an unsupported keyword pass."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise ValueError("a JSON schema must be an object")
    options = schema.get(SCHEMA_OPTIONS, {})
    if not isinstance(options, dict):
        raise ValueError(f"{SCHEMA_OPTIONS!r} must be an object")
    if "whitespace_flexible" not in options:
        options = {"whitespace_pattern": _WHITESPACE, **options}
    return {**schema, SCHEMA_OPTIONS: {**options, "lenient": False, "coerce_one_of": False}}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _slashed(pattern: str) -> str:
    """A regular expression as it stands between slashes."""
    return pattern.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n")


def _string(part: Any, key: str) -> str:
    value = part.get(key) if isinstance(part, Mapping) else None
    if not isinstance(value, str):
        raise ValueError(f"'{key}' must be a string")
    return value


def _list(part: Any, key: str) -> list[Any]:
    value = part.get(key) if isinstance(part, Mapping) else None
    if not isinstance(value, list) or not value:
        raise ValueError(f"'{key}' must be a list that is not empty")
    return value
