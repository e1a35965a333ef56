"""A request whose answer is a message: how the prompt, the tools and the parameters of any protocol become one.

Knows no protocol.
"""

from __future__ import annotations

from dataclasses import replace

import octavo
from octavo_kserve.openai.request import Call, GenerateRequest, MessageSettings
from octavo_kserve.openai.tool_choice import ToolChoice
from octavo_kserve.served_model import ServedModel


def message_request(
    call: Call, prompt: octavo.ChatPrompt, choice: ToolChoice, params: octavo.SamplingParams, shows_reasoning: bool
) -> GenerateRequest:
    """The request. Raises InvalidRequest for a call that cannot be forced."""
    params = _force(choice, params, call.served)
    message = MessageSettings(
        # A grammar holds from the first token on and leaves no room for reasoning.
        format=call.served.engine.chat_format.narrowed(
            tools=bool(choice.tools), reasoning=params.structured_outputs is None
        ),
        shows_reasoning=shows_reasoning,
        parallel_tool_calls=choice.parallel,
        begun=last_answer(prompt) if prompt.continue_final_message else "",
    )
    return GenerateRequest(
        call=call,
        prompts=(_for_message(prompt, message, call.served),),
        echoes=("",),
        params=params,
        num_top_logprobs=None,
        message=message,
    )


def _force(choice: ToolChoice, params: octavo.SamplingParams, served: ServedModel) -> octavo.SamplingParams:
    """The parameters that make the answer a call, if it must be one."""
    if not choice.forced:
        return params
    if params.structured_outputs is not None:
        allowed = '"none" or "auto", since the answer must follow another grammar'
        raise octavo.InvalidRequest("tool_choice", choice.name or "required", allowed)
    engine = served.engine
    calls = engine.chat_format.forced_calls(choice.tools, engine.tokenizer, name=choice.name, parallel=choice.parallel)
    return replace(params, structured_outputs=calls)


def _for_message(prompt: octavo.ChatPrompt, message: MessageSettings, served: ServedModel) -> octavo.ChatPrompt:
    """The prompt of an answer that is read so: a model that could reason is told not to where it cannot be."""
    kwargs = prompt.template_kwargs
    if message.format.reasoning is None and served.engine.chat_format.reasoning is not None:
        kwargs = {"enable_thinking": False, **kwargs}
    return replace(prompt, marks=message.format.marks, template_kwargs=kwargs)


def last_answer(prompt: octavo.ChatPrompt) -> str:
    """The text of the last message if the model wrote it: what an answer that continues it begins with."""
    last = prompt.messages[-1] if isinstance(prompt.messages, list) and prompt.messages else None
    if isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
        return str(last["content"])
    return ""
