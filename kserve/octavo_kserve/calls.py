"""Running one request of the v2 family: v2 infer, generate and v1 predict, over REST and gRPC alike.

Knows what is common to them, JSON and tensors, but no route and no SDK type.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import numpy as np

import octavo
from octavo.v2 import (
    INPUTS,
    OUTPUTS,
    Array,
    ModelFacts,
    RawRequest,
    Request,
    TensorSpec,
    decode_request,
    open_encoder,
)
from octavo_kserve.served_model import ServedModel
from octavo_kserve.submission import submit_in_thread

# Characters. To make tokens of more takes milliseconds, in which no other client would be served.
LONG_PROMPT = 4_000
# Each is a request of its own, and all are answered together.
MOST_INSTANCES = 1024
ALL_OUTPUTS = frozenset(spec.name for spec in OUTPUTS)
_INPUT_NAMES = frozenset(spec.name for spec in INPUTS)
# Inputs that hold JSON in a string; where the body is JSON anyway, its own value may stand there.
JSON_INPUTS = frozenset({"embedding_request", "messages", "tools", "response_format", "sampling_parameters"})
# The names that the v2 protocol has for the types of a model configuration.
_DATATYPES = {"TYPE_STRING": "BYTES"}

_numbers = itertools.count()


def datatype(spec: TensorSpec) -> str:
    """The protocol's name for a tensor's type."""
    return _DATATYPES.get(spec.data_type, spec.data_type.removeprefix("TYPE_"))


def raw_request(body: Mapping[str, Any], request_id: str = "") -> RawRequest:
    """A JSON object as the Triton server's generate extension reads it.

    What has an input's name is that input; the rest are request parameters, also those inside `parameters`.
    """
    nested = body.get("parameters")
    if nested is not None and not isinstance(nested, dict):
        raise octavo.InvalidRequest("parameters", nested, "a JSON object")
    flat = {name: value for name, value in body.items() if name != "parameters"} | (nested or {})
    found_id = flat.pop("id", request_id)
    try:
        tensors = {name: _tensor(name, flat.pop(name)) for name in _INPUT_NAMES & flat.keys()}
        parameters = json.dumps(flat)
    except RecursionError:
        raise octavo.InvalidRequest("parameters", "the body", "values that are not nested too deeply") from None
    return RawRequest(
        tensors=tensors,
        parameters=parameters,
        request_id=found_id if isinstance(found_id, str) else str(found_id),
        timeout_us=0,
        outputs=ALL_OUTPUTS,
    )


def _tensor(name: str, value: object) -> Array:
    if name in JSON_INPUTS and not isinstance(value, str):
        value = json.dumps(value)
    elements = value if isinstance(value, list) else [value]
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array


def facts_of(model: ServedModel, name: str) -> ModelFacts:
    """What reading a request to the model takes to know of it; `name` is the one that the client uses."""
    return ModelFacts(name, decoupled=True, embeds=model.engine.config.runner == "pooling")


def read_call(raw: RawRequest, facts: ModelFacts, streams: bool) -> Request:
    """Understands a request; one whose route answers once cannot stream. Raises InvalidRequest."""
    call = decode_request(raw, facts)
    if call.stream and not streams:
        raise octavo.InvalidRequest("stream", True, "false here; /v2/models/NAME/generate_stream streams")
    return call


async def submit(model: ServedModel, call: Request) -> octavo.RequestStream:
    """Hands a request to the engine. The client's id is for the log: it need not be the only one of its name."""

    def hand_over() -> octavo.RequestStream:
        return model.engine.submit(
            call.prompt,
            call.params,
            request_id=f"{call.request_id}-{next(_numbers)}" if call.request_id else None,
            priority=call.priority,
            deadline_s=call.deadline_s,
            cache_salt=call.cache_salt,
        )

    is_long = not isinstance(call.prompt, str) or len(call.prompt) > LONG_PROMPT
    return await submit_in_thread(hand_over, octavo.RequestStream.cancel) if is_long else hand_over()


async def complete(model: ServedModel, call: Request) -> dict[str, Array]:
    """Runs a request that does not stream to its end; its output tensors. Who gives up waiting ends the request."""
    async with aclosing(responses(await submit(model, call), call)) as answers:
        async for tensors in answers:
            return tensors
    raise octavo.RequestFailed("the request ended without an output")


async def responses(stream: octavo.RequestStream, call: Request) -> AsyncGenerator[dict[str, Array]]:
    """The output tensors of each response of a request that streams; of one that does not, of its only one."""
    encoder = open_encoder(call)
    pending: octavo.RequestOutput | None = None
    try:
        async for output in stream:
            if pending is None:
                pending = output
            else:
                pending.extend(output)
            if pending.finished or (call.stream and encoder.has_news(pending)):
                yield encoder.encode(pending)
                pending = None
    finally:
        stream.cancel()


def as_json(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Tensors as the Triton server's generate extension writes them: one element alone is no list."""
    lists = {name: [_plain(value) for value in array.tolist()] for name, array in tensors.items()}
    return {name: values[0] if len(values) == 1 else values for name, values in lists.items()}


def _plain(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value
