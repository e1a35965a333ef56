"""ChatFormat: how one model writes messages, chosen by its chat template unless the configuration says.

Knows no request and no host.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from octavo.config import EngineConfig
from octavo.errors import InvalidRequest
from octavo.structured_outputs import StructuredOutputs
from octavo.text.chat import check_tools
from octavo.text.message_reader import MessageReader
from octavo.text.reasoning import REASONING_FORMATS, ReasoningFormat, reasoning_format_of
from octavo.text.tokenizer import Tokenizer
from octavo.text.tool_formats import ToolFormat, tool_format_of


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How one model writes messages: how calls of tools, and how reasoning; None where it is not looked for."""

    tools: ToolFormat | None
    reasoning: ReasoningFormat | None

    @property
    def marks(self) -> frozenset[str]:
        """Texts that the readers look for: where they are special tokens, they must not be left out of the text."""
        return frozenset[str]().union(*(each.marks for each in (self.tools, self.reasoning) if each is not None))

    def narrowed(self, *, tools: bool, reasoning: bool) -> ChatFormat:
        """The part of it that one request has use for."""
        return replace(self, tools=self.tools if tools else None, reasoning=self.reasoning if reasoning else None)

    def reader(self, prompt: str, begun: str = "") -> MessageReader:
        """A reader of one message after `prompt`, which may end with what is `begun` of it."""
        return MessageReader(self.tools, self.reasoning, prompt, begun)

    def forced_calls(
        self, tools: object, tokenizer: Tokenizer, *, name: str | None = None, parallel: bool = True
    ) -> StructuredOutputs:
        """What makes a text a call of the tool of this name; with None, of one or (with `parallel`) more of any.

        `tools` are as in the OpenAI API. Raises InvalidRequest for tools of the wrong shape, none of this name, or a
        model whose calls are not looked for.
        """
        named = [(f"tools[{i}].function", tool["function"]) for i, tool in enumerate(check_tools(tools) or [])]
        if self.tools is None:
            raise InvalidRequest("tool_choice", name or "required", '"none" or "auto": this model calls no tools')
        if name is not None:
            names = ", ".join(function["name"] for _, function in named)
            named, parallel = [each for each in named if each[1]["name"] == name][:1], False
            if not named:
                raise InvalidRequest("tool_choice", name, f"one of the `tools`: {names}")
        for label, function in named:
            if not self.tools.can_write(function["name"]):
                raise InvalidRequest(f"{label}.name", function["name"], "a name of letters, digits and _ . : / -")
            kinds = (function.get("parameters") or {}).get("type", "object")
            if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
                raise InvalidRequest(f"{label}.parameters.type", kinds, '"object": arguments have names')
        functions = [function for _, function in named]
        grammar = self.tools.grammar(functions, parallel, lambda mark: _terminal(mark, tokenizer))
        parts = tuple((f"{label}.parameters", function["name"]) for label, function in named)
        parameter = parts[0][0] if len(parts) == 1 else "tools"
        return StructuredOutputs("grammar", grammar, parameter, ", ".join(shown for _, shown in parts), parts)


def open_chat_format(config: EngineConfig, template: str | None) -> ChatFormat:
    """The format that `config` names, or else the one of the model's chat template."""
    tools, reasoning = config.tool_call_parser, config.reasoning_parser
    return ChatFormat(
        None if tools == "none" else tool_format_of(template, None if tools == "auto" else tools),
        reasoning_format_of(template) if reasoning == "auto" else REASONING_FORMATS.get(reasoning),
    )


def _terminal(mark: str, tokenizer: Tokenizer) -> str:
    """As a grammar writes it: special tokens by their number."""
    token_id = tokenizer.special_token_id(mark)
    return json.dumps(mark) if token_id is None else f"<[{token_id}]>"
