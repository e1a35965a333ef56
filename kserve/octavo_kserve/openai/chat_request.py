"""Reads a request to /chat/completions. What messages and tools must look like is the chat template's business."""

from __future__ import annotations

from dataclasses import replace

import octavo
from octavo_kserve.errors import Unprocessable
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.request import GenerateRequest, MessageSettings, read_call, read_params
from octavo_kserve.openai.tool_choice import ToolChoice, read_tool_choice
from octavo_kserve.served_model import Models, ServedModel

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
    params = _force(choice, params, call.served)
    message = _read_message(fields, choice, params, call.served)
    request = GenerateRequest(
        call=call,
        prompts=(_for_message(prompt, message, call.served),),
        echoes=(_last_answer(prompt) if fields.flag("echo") else "",),
        params=params,
        num_top_logprobs=num_top_logprobs,
        message=message,
    )
    fields.log_unknown()
    return request


def _force(choice: ToolChoice, params: octavo.SamplingParams, served: ServedModel) -> octavo.SamplingParams:
    """The parameters that make the answer a call, if it must be one."""
    if not choice.forced:
        return params
    if params.structured_outputs is not None:
        asked = params.structured_outputs.parameter
        raise octavo.InvalidRequest(
            "tool_choice", choice.name or "required", f'"none" or "auto", since {asked} is given'
        )
    engine = served.engine
    calls = engine.chat_format.forced_calls(choice.tools, engine.tokenizer, name=choice.name, parallel=choice.parallel)
    return replace(params, structured_outputs=calls)


def _read_message(
    fields: Fields, choice: ToolChoice, params: octavo.SamplingParams, served: ServedModel
) -> MessageSettings:
    # A grammar holds from the first token on and leaves no room for reasoning.
    reasons = params.structured_outputs is None
    return MessageSettings(
        format=served.engine.chat_format.narrowed(tools=bool(choice.tools), reasoning=reasons),
        shows_reasoning=fields.flag("include_reasoning", True),
        parallel_tool_calls=choice.parallel,
    )


def _for_message(prompt: octavo.ChatPrompt, message: MessageSettings, served: ServedModel) -> octavo.ChatPrompt:
    """The prompt of an answer that is read so: a model that could reason is told not to where it cannot be."""
    kwargs = prompt.template_kwargs
    if message.format.reasoning is None and served.engine.chat_format.reasoning is not None:
        kwargs = {"enable_thinking": False, **kwargs}
    return replace(prompt, marks=message.format.marks, template_kwargs=kwargs)


def read_chat_prompt(fields: Fields, choice: ToolChoice) -> octavo.ChatPrompt:
    """The messages, and what goes with them into the template."""
    template_kwargs = dict(fields.mapping("chat_template_kwargs"))
    for name in template_kwargs:
        if name not in TEMPLATE_KWARGS:
            allowed = "one of " + ", ".join(sorted(TEMPLATE_KWARGS))
            raise octavo.InvalidRequest("chat_template_kwargs", name, allowed)
    effort = fields.text("reasoning_effort")
    if effort is not None:
        template_kwargs.setdefault("reasoning_effort", effort)
    continues = fields.flag("continue_final_message")
    prompts = fields.flag("add_generation_prompt", not continues)
    if continues and prompts:
        raise octavo.InvalidRequest("continue_final_message", True, "false where `add_generation_prompt` is true")
    return octavo.ChatPrompt(fields.get("messages"), choice.tools, prompts, template_kwargs, continues)


def _read_num_top_logprobs(fields: Fields) -> int | None:
    asked = fields.flag("logprobs")
    number = fields.whole_number("top_logprobs", 0, MOST_TOP_LOGPROBS)
    if number and not asked:
        raise Unprocessable("top_logprobs", number, "nothing here unless `logprobs` is true")
    return (number or 0) if asked else None


def _last_answer(prompt: octavo.ChatPrompt) -> str:
    """The text of the last message if the model wrote it: what an answer that continues it begins with."""
    last = prompt.messages[-1] if isinstance(prompt.messages, list) and prompt.messages else None
    if isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
        return str(last["content"])
    return ""
