"""Reads a request to /chat/completions. What messages and tools must look like is the chat template's business."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import octavo
from octavo_kserve.errors import Unprocessable
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.message_request import last_answer, message_request
from octavo_kserve.openai.request import GenerateRequest, read_call, read_params
from octavo_kserve.openai.tool_choice import ToolChoice, read_tool_choice
from octavo_kserve.served_model import Models

MOST_TOP_LOGPROBS = 20
# Variables of well-known templates that a client may set. A template sees others only if the server sets them.
TEMPLATE_KWARGS = frozenset(
    {
        "add_vision_id", "builtin_tools", "custom_tools", "date_string", "documents", "enable_thinking",
        "keep_thinking", "model_identity", "preserve_thinking", "python_tools", "reasoning_effort", "system_message",
        "thinking", "thinking_budget", "tools_in_user_message", "xml_tools",
    }
)  # fmt: skip
_MAX_INT32 = 2**31 - 1
NOT_SUPPORTED = {
    "functions": "it is `tools` now",
    "function_call": "it is `tool_choice` now",
    "audio": "this model answers in text only",
    "prediction": "predicted output is not supported yet",
    "web_search_options": "there is no web search",
    "moderation": "there is no moderation here",
    "chat_template": "prompts are made by the model's own template",
}


def read_chat(fields: Fields, models: Models) -> GenerateRequest:
    """Reads the body. Raises InvalidRequest that names the field at fault, or UnknownModel."""
    call = read_call(fields, models, "chatcmpl-")
    for name, reason in NOT_SUPPORTED.items():
        fields.refuse(name, reason)
    if fields.get("modalities") not in (None, ["text"]):
        raise octavo.InvalidRequest("modalities", fields.get("modalities"), '["text"]')
    choice = read_tool_choice(fields)
    prompt = read_chat_prompt(fields, choice)
    num_top_logprobs = _read_num_top_logprobs(fields)
    # The older name counts only without the newer one.
    max_tokens = fields.whole_number("max_completion_tokens", 1, _MAX_INT32) or fields.get("max_tokens")
    params = read_params(fields, {"logprobs": num_top_logprobs, "max_tokens": max_tokens}, max_tokens=None)
    request = replace(
        message_request(call, prompt, choice, params, fields.flag("include_reasoning", True)),
        echoes=(last_answer(prompt) if fields.flag("echo") else "",),
        num_top_logprobs=num_top_logprobs,
    )
    fields.log_unknown()
    return request


def read_chat_prompt(fields: Fields, choice: ToolChoice) -> octavo.ChatPrompt:
    """The messages, and what goes with them into the template."""
    template_kwargs = dict(fields.mapping("chat_template_kwargs"))
    for name in template_kwargs:
        if name not in TEMPLATE_KWARGS:
            allowed = "one of " + ", ".join(sorted(TEMPLATE_KWARGS))
            raise octavo.InvalidRequest("chat_template_kwargs", name, allowed)
    template_kwargs = effort_kwargs(fields.text("reasoning_effort")) | template_kwargs
    continues = fields.flag("continue_final_message")
    prompts = fields.flag("add_generation_prompt", not continues)
    if continues and prompts:
        raise octavo.InvalidRequest("continue_final_message", True, "false where `add_generation_prompt` is true")
    return octavo.ChatPrompt(fields.get("messages"), choice.tools, prompts, template_kwargs, continues)


def effort_kwargs(effort: str | None) -> dict[str, Any]:
    """What tells a template how much the model is to think."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort} | ({"enable_thinking": False} if effort == "none" else {})


def _read_num_top_logprobs(fields: Fields) -> int | None:
    asked = fields.flag("logprobs")
    number = fields.whole_number("top_logprobs", 0, MOST_TOP_LOGPROBS)
    if number and not asked:
        raise Unprocessable("top_logprobs", number, "nothing here unless `logprobs` is true")
    return (number or 0) if asked else None
