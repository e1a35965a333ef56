"""GenerateRequest: one request to complete or to chat, understood; and how what both have in common is read.

Knows neither messages nor prompts, and nothing of responses.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import octavo
from octavo_kserve.errors import Unprocessable
from octavo_kserve.openai.fields import Fields
from octavo_kserve.served_model import Models, ServedModel

MOST_ID_CHARACTERS = 256
# They ask for nothing that a text model on its own machine could do otherwise.
WITHOUT_EFFECT = (
    "metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user", "verbosity",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Streaming:
    """That a response comes in chunks, and on which of them the token counts are."""

    usage_at_end: bool
    usage_on_all: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What both kinds of requests have in common. `model` is the name by which the client asked."""

    served: ServedModel
    model: str
    response_id: str
    streaming: Streaming | None
    priority: int
    cache_salt: str
    deadline_s: float | None
    returns_token_ids: bool
    returns_prompt_logprobs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageSettings:
    """How the text of an answer becomes a message: what is looked for in it, and what is shown of that.

    `begun` is what the prompt ends with of a message that is continued.
    """

    format: octavo.ChatFormat
    shows_reasoning: bool
    parallel_tool_calls: bool
    begun: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One request, understood: `params.n` completions of each prompt.

    `echoes` are the texts put before those of each prompt; None stands for the text of the prompt's tokens.
    `num_top_logprobs` is how many candidates a response shows at each position, None for no logprobs at all.
    `message` is None where the answer is none.
    """

    call: Call
    prompts: tuple[str | list[int] | octavo.ChatPrompt, ...]
    echoes: tuple[str | None, ...]
    params: octavo.SamplingParams
    num_top_logprobs: int | None
    message: MessageSettings | None = None


def read_call(fields: Fields, models: Models, prefix: str) -> Call:
    """Reads what both kinds have in common; `prefix` begins the response's id."""
    served, model = find_model(fields, models)
    request_id = fields.text("request_id") or uuid.uuid4().hex
    if len(request_id) > MOST_ID_CHARACTERS:
        raise octavo.InvalidRequest("request_id", request_id, f"at most {MOST_ID_CHARACTERS} characters")
    priority = fields.get("priority")
    for name in WITHOUT_EFFECT:
        fields.get(name)
    return Call(
        served=served,
        model=model,
        response_id=prefix + request_id,
        streaming=_read_streaming(fields),
        priority=0 if priority is None else octavo.parse_int("priority", priority),
        cache_salt=fields.text("cache_salt") or "",
        deadline_s=fields.get("deadline_s"),
        returns_token_ids=fields.flag("return_token_ids"),
        returns_prompt_logprobs=fields.get("prompt_logprobs") is not None,
    )


def find_model(fields: Fields, models: Models) -> tuple[ServedModel, str]:
    """The model that is asked for, and its name; where only one is served, it need not be named."""
    name, every = fields.text("model"), models.all()
    if name is None:
        if len(every) != 1:
            num_models = "several" if every else "none"
            raise octavo.InvalidRequest("model", None, f"the name of a model: this server has {num_models}")
        name = every[0].name
    return models.find(name), name


def read_params(fields: Fields, given: Mapping[str, Any], **defaults: object) -> octavo.SamplingParams:
    """Reads the sampling parameters; `given` stands in for those that this API writes in another way."""
    sampling = {name: fields.get(name) for name in sorted(octavo.SamplingParams.parameter_names())}
    sampling |= given
    if sampling["best_of"] is not None and sampling["best_of"] == sampling["n"]:
        # The best n of n are all of them.
        sampling["best_of"] = None
    try:
        return octavo.SamplingParams.from_mapping(sampling, **defaults)
    except octavo.InvalidRequest as error:
        if error.parameter == "seed" and isinstance(error.value, int):
            raise Unprocessable("seed", error.value, error.allowed) from None
        raise


def _read_streaming(fields: Fields) -> Streaming | None:
    streams, options = fields.flag("stream"), fields.within("stream_options")
    if not streams:
        if fields.get("stream_options") is not None:
            raise Unprocessable("stream_options", fields.get("stream_options"), "nothing here unless `stream` is true")
        return None
    streaming = Streaming(options.flag("include_usage"), options.flag("continuous_usage_stats"))
    options.log_unknown()
    return streaming
