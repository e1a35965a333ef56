"""Requests off the wire: input tensors and request parameters to what is asked, or a refusal that names its fault.

Pure functions on plain values: knows no server object, no stream and no thread.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from octavo.errors import InvalidRequest
from octavo.parsing import parse_int, parse_mapping
from octavo.prompt import ChatPrompt
from octavo.sampling_params import SamplingParams
from octavo.v2.elements import parse_object, read_flag, read_json, read_string, read_text
from octavo.v2.embed_request import EMBEDDING_REQUEST, EmbedRequest, read_input, read_pooling
from octavo.v2.tensors import RETURN_FLAGS, TEXT_OUTPUT, Array

logger = logging.getLogger(__name__)

# Ours beside the sampling parameters: they may stand in either place where those may.
_PRIORITY, _CACHE_SALT, _LORA_NAME = "request_priority", "cache_salt", "lora_name"
_KNOWN_PARAMETERS = SamplingParams.parameter_names() | {_PRIORITY, _CACHE_SALT, _LORA_NAME}
# Request parameters that the server and its clients set for themselves.
_SERVER_PARAMETERS = frozenset(
    {"id", "priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"}
)
_MAX_TIMEOUT_US = 2**63 - 1
_SHORTEST_DEADLINE_S = 0.001
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What reading a request takes to know of the model. `lora_names` are in file order; None without LoRA.

    `embeds`: it makes vectors instead of text.
    """

    name: str
    decoupled: bool
    lora_names: tuple[str, ...] | None = None
    embeds: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRequest:
    """A request as the server hands it over: input arrays by name, parameters as JSON text, timeout in microseconds."""

    tensors: Mapping[str, Array]
    parameters: str
    request_id: str
    timeout_us: int
    outputs: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One request, understood. `echo` stands before each text; `deadline_s` is seconds from arrival.

    `outputs` are the names of the tensors to send: nothing else may be. `logprobs_asked` tells whether the client's own
    sampling parameters ask for logprobs: `params` also does for the sake of their sum.
    """

    request_id: str
    prompt: str | ChatPrompt
    params: SamplingParams
    stream: bool
    echo: str
    priority: int
    cache_salt: str
    deadline_s: float | None
    outputs: frozenset[str]
    logprobs_asked: bool


class _FixedText(InvalidRequest):
    """An InvalidRequest whose whole text is fixed by the contract."""

    def __init__(self, parameter: str, value: object, text: str) -> None:
        super().__init__(parameter, value, text)
        self.args = (text,)


def decode_request(raw: RawRequest, facts: ModelFacts) -> GenerateRequest | EmbedRequest:
    """Reads a request. Raises InvalidRequest that names the input or parameter at fault.

    A model that is not decoupled sends one response a request, so it cannot stream.
    """
    embeds = raw.tensors.get(EMBEDDING_REQUEST) is not None
    return _decode_embedding(raw, facts) if embeds else _decode_generation(raw, facts)


def _decode_embedding(raw: RawRequest, facts: ModelFacts) -> EmbedRequest:
    if not facts.embeds:
        text = f"Model {facts.name} does not support 'embed' request"
        raise _FixedText(EMBEDDING_REQUEST, "a request", text)
    asked = parse_mapping(EMBEDDING_REQUEST, read_json(raw.tensors, EMBEDDING_REQUEST))
    parameters = parse_object("parameters", raw.parameters or "{}")
    return EmbedRequest(
        request_id=raw.request_id,
        prompt=read_input(asked),
        params=read_pooling(asked),
        priority=_priority(parameters.get(_PRIORITY)),
        cache_salt=read_string(_CACHE_SALT, parameters.get(_CACHE_SALT)) or "",
        deadline_s=_deadline(raw.timeout_us, parameters),
        outputs=_wanted_outputs(raw),
    )


def _decode_generation(raw: RawRequest, facts: ModelFacts) -> GenerateRequest:
    _refuse_images(raw.tensors)
    text = read_text(raw.tensors, "text_input")
    prompt = _read_prompt(raw.tensors, text)
    stream, echoes = _read_mode(raw.tensors, facts)
    outputs = _wanted_outputs(raw)
    parameters = parse_object("parameters", raw.parameters or "{}")
    sampling = _read_sampling(raw.tensors, parameters)
    own = {name: sampling.pop(name, None) for name in (_PRIORITY, _CACHE_SALT, _LORA_NAME)}
    own = {name: parameters.get(name) if value is None else value for name, value in own.items()}
    _check_lora(own[_LORA_NAME], facts)
    # A chat may go on to the end of the context; a completion ends after 16 tokens unless told otherwise.
    defaults = {"max_tokens": None} if isinstance(prompt, ChatPrompt) else {}
    params = SamplingParams.from_mapping(sampling, **defaults)
    logprobs_asked = params.logprobs is not None
    if "cumulative_logprob" in outputs and not logprobs_asked:
        params = replace(params, logprobs=0)
    return GenerateRequest(
        request_id=raw.request_id,
        prompt=prompt,
        params=params,
        stream=stream,
        echo=text or "" if echoes else "",
        priority=_priority(own[_PRIORITY]),
        cache_salt=read_string(_CACHE_SALT, own[_CACHE_SALT]) or "",
        deadline_s=_deadline(raw.timeout_us, parameters),
        outputs=outputs,
        logprobs_asked=logprobs_asked,
    )


def _priority(value: object) -> int:
    return 0 if value is None else parse_int(_PRIORITY, value)


def _refuse_images(tensors: Mapping[str, Array]) -> None:
    image = tensors.get("image")
    if image is not None and image.size:
        raise InvalidRequest("image", f"{image.size} of them", "none: this model reads text only")


def _read_prompt(tensors: Mapping[str, Array], text: str | None) -> str | ChatPrompt:
    messages, tools = (read_json(tensors, name) for name in ("messages", "tools"))
    if messages is not None:
        return ChatPrompt(messages, tools)
    if tools is not None:
        raise InvalidRequest("tools", tools, "none without `messages`: tools are for chats")
    if text is None:
        raise InvalidRequest("text_input", None, "a string: the input is required")
    return text


def _read_mode(tensors: Mapping[str, Array], facts: ModelFacts) -> tuple[bool, bool]:
    """Whether the request streams, and whether its prompt is put before the text."""
    stream, exclude_input = bool(read_flag(tensors, "stream")), read_flag(tensors, "exclude_input_in_output")
    if stream and not facts.decoupled:
        raise InvalidRequest("stream", True, "false, since this model is configured with decoupled: false")
    if stream and exclude_input is False:
        text = "When streaming, `exclude_input_in_output` = False is not allowed."
        raise _FixedText("exclude_input_in_output", False, text)
    return stream, not stream and not exclude_input


def _wanted_outputs(raw: RawRequest) -> frozenset[str]:
    """What the client asked for twice: by its flag, and by not leaving the output out of those it requests."""
    asked = {output for flag, output in RETURN_FLAGS.items() if read_flag(raw.tensors, flag)}
    return raw.outputs & (asked | {TEXT_OUTPUT})


def _read_sampling(tensors: Mapping[str, Array], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters from the one place or the other, never merged; `response_format` may have its own."""
    text = read_text(tensors, "sampling_parameters")
    sampling = _sampling_of_parameters(parameters) if text is None else parse_object("sampling_parameters", text)
    response_format = read_json(tensors, "response_format")
    if response_format is not None:
        if sampling.get("response_format") is not None:
            raise InvalidRequest("response_format", response_format, "only one: sampling_parameters has another")
        sampling["response_format"] = response_format
    return sampling


def _sampling_of_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters among the request's parameters.

    Proxies add parameters of their own (the server forwards headers as such), so an unknown one is no error, unless it
    is so near to a known name that it must be a slip: a header's name has a hyphen, as no parameter of ours has.
    """
    sampling = {}
    for name, value in parameters.items():
        if name in _KNOWN_PARAMETERS:
            sampling[name] = value
        elif name not in _SERVER_PARAMETERS and not name.startswith(("_", "triton_")):
            near = [] if "-" in name else get_close_matches(name, _KNOWN_PARAMETERS, n=1, cutoff=0.8)
            if near:
                raise InvalidRequest("request parameter", name, near[0])
            _warn_of_unknown(name)
    return sampling


@lru_cache(maxsize=256)
def _warn_of_unknown(name: str) -> None:
    """Once a name: a proxy sends its header with every request."""
    logger.warning("unknown request parameter %.80r is ignored", name)


def _check_lora(given: object, facts: ModelFacts) -> None:
    name = read_string(_LORA_NAME, given)
    if name is None:
        return
    if facts.lora_names is None:
        raise _FixedText(_LORA_NAME, name, "LoRA feature is not enabled.")
    if name not in facts.lora_names:
        shown = name[:_SHOWN_CHARACTERS]
        text = f"LoRA {shown} is not supported, we currently support {list(facts.lora_names)}"
        raise _FixedText(_LORA_NAME, name, text)


def _deadline(timeout_us: int, parameters: Mapping[str, Any]) -> float | None:
    """The server's own field where the client can set it (gRPC); /generate leaves it among the parameters."""
    timeout_us = timeout_us or parse_int("timeout", parameters.get("timeout") or 0)
    if not 0 <= timeout_us <= _MAX_TIMEOUT_US:
        raise InvalidRequest("timeout", timeout_us, f"microseconds from 0 to {_MAX_TIMEOUT_US}")
    # However short, it is a time limit that runs out, not a bad parameter.
    return max(timeout_us / 1e6, _SHORTEST_DEADLINE_S) if timeout_us else None
