"""Chat templates: messages to one prompt text, in a sandbox, as the model's own template says.

A template is foreign code: it sees plain data only, and whatever it raises is the request's error.
Knows no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from octavo.errors import InvalidRequest
from octavo.parsing import parse_json
from octavo.text.retold import retold

_RESERVED = ("messages", "tools", "add_generation_prompt")
_SHOWN_CHARACTERS = 300
_DEVELOPER = "developer"
# Characters that Unicode leaves to private use: no template looks for them.
_END_MARK = "\ue000end of the last message\ue001"


def render_chat(
    template: str | None,
    messages: object,
    special_tokens: Mapping[str, str],
    *,
    tools: object = None,
    add_generation_prompt: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The prompt that `template` makes of `messages`, special tokens written out (encode it without adding any).

    `special_tokens` is `Tokenizer.special_tokens`; `tools` are functions as in the OpenAI API; `template_kwargs` are
    further variables for the template. Raises InvalidRequest for messages or tools of the wrong shape, a model without
    a template, and whatever the template refuses.
    """
    checked = _check_messages(messages)
    known_tools = check_tools(tools)
    if not template:
        raise InvalidRequest("messages", _roles(checked), "a prompt instead: the model has no chat template")
    extra = dict(template_kwargs or {})
    for name in _RESERVED:
        if name in extra:
            raise InvalidRequest("chat_template_kwargs", name, f"names other than {', '.join(_RESERVED)}")
    compiled = _compile(template)
    if not compiled.takes_parts:
        checked = [{**message, "content": _joined(message["content"])} for message in checked]
    if _DEVELOPER not in template:
        # Newer clients call it so; templates that do not know the role refuse it, or leave the message out.
        checked = [{**message, "role": "system"} if message["role"] == _DEVELOPER else message for message in checked]
    variables = {**special_tokens, **extra, "add_generation_prompt": add_generation_prompt}
    cause: Exception | None = None
    for told, told_tools in chain([(checked, known_tools)], retold(checked, known_tools)):
        try:
            return compiled.template.render(variables, messages=told, tools=told_tools)
        except Exception as error:  # Foreign code may raise anything; it is never our bug.
            # The template's own words about the messages as they came count more than those about other ways.
            cause = cause if isinstance(cause, TemplateError) else error
    assert cause is not None
    raise _refusal(checked, cause)


def render_unfinished_chat(
    template: str | None,
    messages: object,
    special_tokens: Mapping[str, str],
    *,
    tools: object = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Like `render_chat`, but ends where the text of the last message does: the model writes on in that message.

    Raises InvalidRequest also for a last message without text, and for a template that does not show it.
    """
    *before, last = _check_messages(messages)
    marked = [*before, {**last, "content": _marked(last)}]
    rendered = render_chat(
        template, marked, special_tokens, tools=tools, add_generation_prompt=False, template_kwargs=template_kwargs
    )
    prompt, mark, _ = rendered.rpartition(_END_MARK)
    if not mark:
        raise _cannot_continue("the model's chat template does not show the last message as it is")
    return prompt


def _marked(message: dict[str, Any]) -> str | list[dict[str, str]]:
    content: str | list[dict[str, str]] = message["content"]
    if not content and (message.get("tool_calls") or isinstance(content, list)):
        raise _cannot_continue("the last message has no text")
    if isinstance(content, str):
        return content + _END_MARK
    *before, last = content
    return [*before, {**last, "text": last["text"] + _END_MARK}]


def _cannot_continue(reason: str) -> InvalidRequest:
    return InvalidRequest("continue_final_message", True, f"false: {reason}")


def _check_messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise InvalidRequest("messages", messages, "a list of messages that is not empty")
    return [_check_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _check_message(name: str, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(name, message, 'an object with "role" and "content"')
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"{name}.role", role, "a string that is not empty")
    if isinstance(content, list):
        content = [_check_part(f"{name}.content[{i}]", part) for i, part in enumerate(content)]
    elif content is None and (role == "assistant" or message.get("tool_calls")):
        # What clients send back of an answer that called tools, or only thought; templates that add texts up take no
        # null.
        content = message["refusal"] if isinstance(message.get("refusal"), str) else ""
    elif not isinstance(content, str):
        raise InvalidRequest(f"{name}.content", content, "a string, or a list of text parts")
    # Templates ask whether there are calls by looking for the member, which clients send also for none.
    checked = {member: value for member, value in message.items() if member != "tool_calls"} | {"content": content}
    if message.get("tool_calls"):
        checked["tool_calls"] = _check_calls(f"{name}.tool_calls", message["tool_calls"])
    return checked


def _check_calls(name: str, calls: object) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InvalidRequest(name, calls, "a list of calls")
    return [_check_call(f"{name}[{i}]", call) for i, call in enumerate(calls)]


def _check_call(name: str, call: object) -> dict[str, Any]:
    """With the arguments as an object: the API has them as a text, templates write them out themselves.

    A text that stands for none is what a model wrote that was not forced, or was cut off. It reaches the template as it
    is, so that the model reads what it wrote: as it stands, or in quotation marks where the template writes JSON. A
    template that goes through the members of an object gets one instead, whose only member holds the text.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise InvalidRequest(name, call, 'an object like {"id": "...", "type": "function", "function": {...}}')
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidRequest(f"{name}.function.name", function.get("name"), "a string that is not empty")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _read_arguments(arguments)
    elif arguments is not None and not isinstance(arguments, Mapping):
        raise InvalidRequest(f"{name}.function.arguments", arguments, "a JSON object, or a text of one")
    return {**call, "function": {**function, "arguments": arguments or {}}}


def _read_arguments(text: str) -> dict[str, Any] | str | None:
    """The object, None where the text says that there is none, and else the text."""
    try:
        value = parse_json("arguments", text) if text.strip() else None
        json.dumps(value, allow_nan=False)
    except (InvalidRequest, ValueError, RecursionError):
        return text
    return value if value is None or isinstance(value, dict) else text


def _check_part(name: str, part: object) -> dict[str, str]:
    if not isinstance(part, Mapping):
        raise InvalidRequest(name, part, 'an object like {"type": "text", "text": "..."}')
    kind = part.get("type")
    if kind not in ("text", "refusal"):
        raise InvalidRequest(f"{name}.type", kind, '"text": this model reads text only')
    text = part.get(kind)
    if not isinstance(text, str):
        raise InvalidRequest(f"{name}.{kind}", text, "a string")
    return {"type": "text", "text": text}


def check_tools(tools: object) -> list[dict[str, Any]] | None:
    """Tools as in the OpenAI API; None for none at all, which is what templates ask for.

    Raises InvalidRequest that names what has the wrong shape.
    """
    if tools is None:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise InvalidRequest("tools", tools, "a list of tools")
    return [_check_tool(f"tools[{i}]", tool) for i, tool in enumerate(tools)] or None


def _check_tool(name: str, tool: object) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(function, Mapping):
        raise InvalidRequest(name, tool, 'an object like {"type": "function", "function": {"name": "..."}}')
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidRequest(f"{name}.function.name", function.get("name"), "a string that is not empty")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise InvalidRequest(f"{name}.function.parameters", parameters, "a JSON schema, which is an object")
    return dict(tool)


def _joined(content: str | list[dict[str, str]]) -> str:
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content


def _roles(messages: list[dict[str, Any]]) -> list[str]:
    return [message["role"] for message in messages]


def _refusal(messages: list[dict[str, Any]], error: Exception) -> InvalidRequest:
    reason = str(error)[:_SHOWN_CHARACTERS] or type(error).__name__
    return InvalidRequest("messages", _roles(messages), f"messages that the model's chat template accepts: {reason}")


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A template ready to render. `takes_parts`: it goes through the parts of a content itself."""

    template: Template
    takes_parts: bool


@lru_cache(maxsize=32)
def _compile(source: str) -> _Compiled:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    try:
        loops = environment.parse(source).find_all(nodes.For)
        return _Compiled(environment.from_string(source), any(_is_content(loop.iter) for loop in loops))
    except (TemplateError, RecursionError) as error:
        raise InvalidRequest("messages", "chat template", f"a template that can be read: {error}") from None


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


class _GenerationBlock(Extension):
    """`{% generation %}` marks what the model wrote, for training. Here it only has a scope of its own."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(value: object, indent: int | None = None, **options: Any) -> str:
    """JSON as templates were written for: not escaped for HTML, as jinja2's own filter is."""
    return json.dumps(value, indent=indent, **{"ensure_ascii": False, **options})


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(text_format: str) -> str:
    return datetime.now().strftime(text_format)
