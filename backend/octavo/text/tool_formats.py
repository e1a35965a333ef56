"""ToolFormat: how a family of models writes calls of tools into its text, and which one a chat template is made for.

Knows no request and no stream.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from octavo.structured_outputs import SCHEMA_OPTIONS
from octavo.text.named_call_reader import NAME

# Arguments are written as templates write them, and nothing that a schema asks for is left out silently.
_WRITTEN = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """The frame around calls, each of which is a JSON object of a name and arguments.

    After `opening` come calls with `separator` between them, in a list if `in_list`, and then `closing`; without a
    separator it is one call. A text that is `bare` may begin with a call at once. `arguments` is what the model calls
    them. `named_marks`: instead of a list there may be one call, of a name and arguments, with the first of these marks
    between them, or the second and an id, and the first; with `is_named` that is how the model writes them.
    `template_mark` tells chat templates of this format; `id_length` is how long a call's id must be, if it must.
    """

    name: str
    template_mark: str
    opening: str
    closing: str = ""
    separator: str = ""
    in_list: bool = False
    bare: bool = False
    arguments: str = "arguments"
    named_marks: tuple[str, ...] = ()
    is_named: bool = False
    id_length: int | None = None

    @property
    def marks(self) -> frozenset[str]:
        """Those that may be special tokens of a vocabulary, which belong to the text then."""
        return frozenset({self.opening} if self.separator else {self.opening, self.closing}).union(self.named_marks)

    def can_write(self, name: str) -> bool:
        """Whether a call of this function can be told from other text."""
        return not self.is_named or NAME.fullmatch(name) is not None

    def grammar(self, functions: Sequence[Mapping[str, Any]], parallel: bool, literal: Callable[[str], str]) -> str:
        """A Lark grammar, as llguidance reads it, of one call of one of `functions`; with `parallel` of one or more.

        `functions` are as in the OpenAI API. `literal` writes a mark as a terminal of the grammar.
        """
        names = [f"call_{i}" for i in range(len(functions))]
        opening, closing = (literal(mark) if mark else "" for mark in (self.opening, self.closing))
        if self.is_named:
            start, one, between = "calls", f"{opening} call", ""
        elif self.in_list:
            start, one, between = f'{opening} "[" calls "]"', "call", _terminal(self.separator + " ")
        elif self.bare:
            start, one, between = "calls", "call", _terminal(self.separator + " ")
        else:
            start, one, between = "calls", f'{opening} "\\n" call "\\n" {closing}', '"\\n"'
        more = f" ({between} {one})*" if parallel else ""
        lines = [f"start: {start}", f"calls: {one}{more}", f"call: {' | '.join(names)}"]
        for name, function in zip(names, functions, strict=True):
            # A schema of its own, so that what it refers to is found from its own root.
            lines += [self._call_rule(name, function, literal), f"{name}_arguments: %json {_schema(function)}"]
        return "\n".join(lines)

    def _call_rule(self, name: str, function: Mapping[str, Any], literal: Callable[[str], str]) -> str:
        if self.is_named:
            return f"{name}: {_terminal(function['name'])} {literal(self.named_marks[0])} {name}_arguments"
        begin = _terminal(f'{{"name": {json.dumps(function["name"])}, "{self.arguments}": ')
        return f'{name}: {begin} {name}_arguments "}}"'


def _terminal(text: str) -> str:
    return json.dumps(text)


def _schema(function: Mapping[str, Any]) -> str:
    parameters = function.get("parameters") or {"properties": {}}
    return json.dumps({**parameters, "type": "object", SCHEMA_OPTIONS: _WRITTEN})


HERMES = ToolFormat(name="hermes", template_mark="<tool_call>", opening="<tool_call>", closing="</tool_call>")
MISTRAL = ToolFormat(
    name="mistral",
    template_mark="[TOOL_CALLS]",
    opening="[TOOL_CALLS]",
    closing="]",
    separator=",",
    in_list=True,
    named_marks=("[ARGS]", "[CALL_ID]"),
    # Mistral's own templates refuse any other.
    id_length=9,
)
MISTRAL_NAMED = replace(MISTRAL, template_mark="[ARGS]", is_named=True)
LLAMA3 = ToolFormat(
    name="llama3_json",
    template_mark='"parameters": ',
    opening="<|python_tag|>",
    separator=";",
    bare=True,
    arguments="parameters",
)
TOOL_FORMATS = {tools.name: tools for tools in (HERMES, MISTRAL, LLAMA3)}
# Templates of the first ones may have the marks of later ones as well.
_LOOKED_FOR = (HERMES, MISTRAL_NAMED, MISTRAL, LLAMA3)


def tool_format_of(template: str | None, name: str | None = None) -> ToolFormat:
    """The one that `template` speaks of, among those of this name. Of none: Hermes', whose marks no other text has."""
    known = [tools for tools in _LOOKED_FOR if name in (None, tools.name)]
    default = HERMES if name is None else TOOL_FORMATS[name]
    return next((tools for tools in known if tools.template_mark in (template or "")), default)
