"""Reads a request to /responses: the same request as a chat's, and what its answer repeats of it.

What would need a server that remembers is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import octavo
from octavo_kserve.openai.chat_request import MOST_TOP_LOGPROBS, effort_kwargs
from octavo_kserve.openai.depth import MOST_LEVELS, is_writable
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.message_request import message_request
from octavo_kserve.openai.request import GenerateRequest, read_call, read_params
from octavo_kserve.openai.spelling import spelled
from octavo_kserve.openai.tool_choice import ToolChoice
from octavo_kserve.responses.input_items import read_input
from octavo_kserve.responses.tools import read_tools
from octavo_kserve.served_model import Models

# What the engine and the chat route call it -> what clients of this one do.
NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "tools[].function": "tools[]",
}
REFUSED = {
    "previous_response_id": "nothing is stored here; send the items again in `input`",
    "conversation": "nothing is stored here; send the items again in `input`",
    "background": "an answer is given to who waits for it",
    "prompt": "there are no stored prompts",
    "context_management": "send the items that are to be read",
    "moderation": "there is no moderation here",
    "messages": "it is `input` here",
    "max_tokens": "it is `max_output_tokens` here",
    "max_completion_tokens": "it is `max_output_tokens` here",
    "logprobs": "it is `top_logprobs` here",
    "prompt_logprobs": "a response has none",
}
# They speak of tools that a server brings, or ask for nothing that could be done otherwise.
WITHOUT_EFFECT = ("max_tool_calls", "prompt_cache_options")
LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """`generate` is the request as the engine sees it; `repeated` are the members of its answer that only repeat it."""

    generate: GenerateRequest
    repeated: dict[str, Any]


def read_response(fields: Fields, models: Models) -> ResponseRequest:
    """Reads the body. Raises InvalidRequest that names the field at fault, or UnknownModel."""
    for name, reason in REFUSED.items():
        fields.refuse(name, reason)
    with spelled(NAMES):
        return _read(fields, models)


def _read(fields: Fields, models: Models) -> ResponseRequest:
    call = read_call(fields, models, "resp_")
    for name in WITHOUT_EFFECT:
        fields.get(name)
    if fields.get("truncation") not in (None, "disabled"):
        raise octavo.InvalidRequest("truncation", fields.get("truncation"), '"disabled"')
    choice, instructions, reasoning = read_tools(fields), fields.text("instructions"), fields.within("reasoning")
    effort = reasoning.text("effort")
    messages = read_input(fields.get("input"), instructions)
    prompt = octavo.ChatPrompt(messages, choice.tools or None, template_kwargs=effort_kwargs(effort))
    text_format, num_top_logprobs = _read_format(fields), _read_num_top_logprobs(fields)
    params = _read_params(fields, text_format, num_top_logprobs)
    request = message_request(call, prompt, choice, params, shows_reasoning=True)
    repeated = _repeated(fields, choice, params) | {
        "instructions": instructions,
        "reasoning": {"effort": effort, "summary": reasoning.text("summary")},
        "text": {"format": _writable("text.format", text_format) or {"type": "text"}},
        "top_logprobs": num_top_logprobs or 0,
    }
    fields.log_unknown()
    return ResponseRequest(_with_logprobs(request, num_top_logprobs), repeated)


def _repeated(fields: Fields, choice: ToolChoice, params: octavo.SamplingParams) -> dict[str, Any]:
    named = {"type": "function", "name": choice.name}
    nothing = {"description": None, "parameters": None, "strict": None}
    return {
        "max_output_tokens": params.max_tokens,
        "metadata": _writable("metadata", fields.mapping("metadata")),
        "parallel_tool_calls": choice.parallel,
        "temperature": params.temperature,
        "tool_choice": named if choice.name else fields.get("tool_choice") or "auto",
        "tools": [nothing | tool for tool in _writable("tools", fields.get("tools")) or ()],
        "top_p": params.top_p,
    }


def _read_format(fields: Fields) -> dict[str, Any]:
    """`text.format` as it came, empty for none."""
    text = fields.within("text")
    text.get("verbosity")
    return text.mapping("format")


def _read_params(fields: Fields, text_format: dict[str, Any], num_top_logprobs: int | None) -> octavo.SamplingParams:
    given: dict[str, Any] = {
        "max_tokens": fields.get("max_output_tokens"),
        "logprobs": num_top_logprobs,
        "prompt_logprobs": None,
    }
    if text_format:
        described = {name: value for name, value in text_format.items() if name != "type"}
        given["response_format"] = {"type": text_format.get("type"), "json_schema": described}
    params = read_params(fields, given, max_tokens=None)
    if params.n != 1:
        raise octavo.InvalidRequest("n", params.n, "1: a response is one answer")
    return params


def _read_num_top_logprobs(fields: Fields) -> int | None:
    """None unless the client wants logprobs at all."""
    asked, number = fields.get("include"), fields.whole_number("top_logprobs", 0, MOST_TOP_LOGPROBS)
    if asked is not None and not (isinstance(asked, list) and all(isinstance(name, str) for name in asked)):
        raise octavo.InvalidRequest("include", asked, "a list of names")
    return (number or 0) if number or LOGPROBS in (asked or ()) else None


def _with_logprobs(request: GenerateRequest, number: int | None) -> GenerateRequest:
    """They are a text's: which tokens of an answer are those of its text is known where there is nothing else."""
    assert request.message is not None
    if number is not None and request.message.format != octavo.ChatFormat(None, None):
        raise octavo.InvalidRequest("include", LOGPROBS, "nothing here beside tools, or reasoning of the model")
    return replace(request, num_top_logprobs=number)


def _writable(name: str, value: Any) -> Any:
    """What the answer repeats."""
    if not is_writable(value):
        raise octavo.InvalidRequest(name, "a value", f"finite numbers, at most {MOST_LEVELS} levels of nesting")
    return value
