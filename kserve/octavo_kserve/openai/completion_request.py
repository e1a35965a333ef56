"""Reads a request to /completions: one prompt or many, each a text or token ids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import octavo
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.request import GenerateRequest, read_call, read_params
from octavo_kserve.served_model import Models

MOST_PROMPTS = 1024
_KINDS = "a string, a list of strings, a list of token ids, or a list of lists of token ids"


def read_completion(fields: Fields, models: Models) -> GenerateRequest:
    """Reads the body. Raises InvalidRequest that names the field at fault, or UnknownModel."""
    call = read_call(fields, models, "cmpl-")
    fields.refuse("suffix", "this model only writes on from a prompt")
    fields.refuse("prompt_embeds", "prompts are text or token ids")
    prompts = read_prompts("prompt", fields.get("prompt"))
    params = read_params(fields, {})
    num_top_logprobs = params.logprobs
    echoes: list[str | None] = [""] * len(prompts)
    if fields.flag("echo"):
        echoes = [prompt if isinstance(prompt, str) else None for prompt in prompts]
        if num_top_logprobs is not None and params.prompt_logprobs is None:
            params = replace(params, prompt_logprobs=num_top_logprobs)
    fields.log_unknown()
    return GenerateRequest(
        call=call, prompts=tuple(prompts), echoes=tuple(echoes), params=params, num_top_logprobs=num_top_logprobs
    )


def read_prompts(name: str, value: Any) -> list[str | list[int]]:
    """The prompts. Which token ids there are is checked where the model is known."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise octavo.InvalidRequest(name, value, _KINDS)
    if all(type(item) is int for item in value):
        return [value]
    if len(value) > MOST_PROMPTS:
        raise octavo.InvalidRequest(name, f"{len(value)} prompts", f"at most {MOST_PROMPTS}")
    if all(isinstance(item, str) for item in value):
        return value
    for i, item in enumerate(value):
        if not isinstance(item, list) or not all(type(token_id) is int for token_id in item):
            raise octavo.InvalidRequest(f"{name}[{i}]", item, _KINDS)
    return value
