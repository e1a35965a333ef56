"""Reads a request to /messages: the same request as a chat's. What this server cannot do is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import octavo
from octavo_kserve.anthropic.tools import read_tools
from octavo_kserve.anthropic.turns import read_turns
from octavo_kserve.errors import NoThreads
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.message_request import message_request
from octavo_kserve.openai.request import GenerateRequest, read_call, read_params
from octavo_kserve.openai.spelling import spelled
from octavo_kserve.openai.tool_choice import ToolChoice
from octavo_kserve.served_model import Models

# What the engine and the chat route call it -> what clients of this one do.
NAMES = {
    "stop": "stop_sequences",
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "tools[].function": "tools[]",
    "tools[].function.parameters": "tools[].input_schema",
}
REFUSED = {
    "container": "there is no code execution",
    "output_format": "it is `output_config.format` now",
    "mcp_servers": "this server calls no others",
    "thread": "send all messages with each turn",
    "compaction": "send the messages that are to be read",
    "stop": "it is `stop_sequences` here",
    "max_completion_tokens": "it is `max_tokens` here",
    "logprobs": "a message has none",
    "prompt_logprobs": "a message has none",
}
# Prefixes are cached without being asked for.
WITHOUT_EFFECT = ("cache_control", "diagnostics", "inference_geo", "speed")


@dataclass(frozen=True, slots=True)
class Thinking:
    """Whether the model is told to think (None: as its template has it), for how long, and whether that is shown."""

    enabled: bool | None
    budget_tokens: int | None
    shown: bool


def read_message(fields: Fields, models: Models) -> GenerateRequest:
    """Reads the body. Raises InvalidRequest that names the field at fault, or UnknownModel."""
    if fields.get("max_tokens") is None:
        raise octavo.InvalidRequest("max_tokens", None, "a whole number, 1 or more")
    return read_counted(fields, models)


def read_counted(fields: Fields, models: Models) -> GenerateRequest:
    """The same of a body whose prompt is to be counted only, which does not say how long the answer may be."""
    if fields.get("thread"):
        raise NoThreads("thread", fields.get("thread"), f"nothing here: {REFUSED['thread']}")
    for name, reason in REFUSED.items():
        fields.refuse(name, reason)
    with spelled(NAMES):
        call = read_call(fields, models, "msg_")
        choice, thinking = read_tools(fields), _read_thinking(fields)
        prompt = _read_prompt(fields, choice, thinking)
        request = message_request(call, prompt, choice, _read_params(fields), thinking.shown)
        fields.log_unknown()
        return request


def _read_prompt(fields: Fields, choice: ToolChoice, thinking: Thinking) -> octavo.ChatPrompt:
    """The messages, and what goes with them into the template. An answer that has begun is gone on with."""
    for name in WITHOUT_EFFECT:
        fields.get(name)
    _refuse_edits(fields.within("context_management").get("edits"))
    messages = read_turns(fields.get("messages"), fields.get("system"))
    continues = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    effort = fields.within("output_config").text("effort")
    kwargs = {
        "enable_thinking": thinking.enabled,
        "thinking_budget": thinking.budget_tokens,
        "reasoning_effort": effort,
    }
    return octavo.ChatPrompt(
        messages,
        choice.tools or None,
        add_generation_prompt=not continues,
        template_kwargs={name: value for name, value in kwargs.items() if value is not None},
        continue_final_message=continues,
    )


def _refuse_edits(edits: object) -> None:
    """Clients send some with every request which keep all that there is."""
    if edits is not None and not isinstance(edits, list):
        raise octavo.InvalidRequest("context_management.edits", edits, "a list of edits")
    for i, edit in enumerate(edits or ()):
        if not isinstance(edit, dict) or edit.get("keep") != "all":
            allowed = 'one that keeps "all": send the messages that are to be read'
            raise octavo.InvalidRequest(f"context_management.edits[{i}]", edit, allowed)


def _read_thinking(fields: Fields) -> Thinking:
    thinking = fields.within("thinking")
    kind = thinking.text("type")
    if fields.get("thinking") is not None and kind not in ("enabled", "disabled", "adaptive"):
        raise octavo.InvalidRequest("thinking.type", kind, '"enabled", "disabled" or "adaptive"')
    budget = thinking.whole_number("budget_tokens", 1, 2**31 - 1)
    shown = kind != "disabled" and thinking.text("display") != "omitted"
    return Thinking(None if kind is None else kind != "disabled", budget, shown)


def _read_params(fields: Fields) -> octavo.SamplingParams:
    given: dict[str, Any] = {"stop": fields.get("stop_sequences"), "logprobs": None, "prompt_logprobs": None}
    config = fields.within("output_config")
    if config.mapping("format"):
        described = {name: value for name, value in config.mapping("format").items() if name != "type"}
        given["response_format"] = {"type": config.mapping("format").get("type"), "json_schema": described}
    params = read_params(fields, given)
    if params.n != 1:
        raise octavo.InvalidRequest("n", params.n, "1: a message is one answer")
    return params
