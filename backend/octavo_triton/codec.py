"""What is on the wire, both ways: request tensors and parameters to a GenerateRequest, RequestOutput to output tensors.

Pure functions on plain values: knows no server object, no stream and no thread. The two tables are the contract.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt

from octavo import CompletionOutput, InvalidRequest, RequestOutput, SamplingParams

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of the model: its name, Triton type and dims; outputs are never optional."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False

    def as_config(self) -> dict[str, object]:
        """The entry of a model configuration."""
        entry: dict[str, object] = {"name": self.name, "data_type": self.data_type, "dims": list(self.dims)}
        return entry | {"optional": True} if self.optional else entry


INPUTS = (
    TensorSpec("text_input", "TYPE_STRING", (1,)),
    TensorSpec("stream", "TYPE_BOOL", (1,), optional=True),
    TensorSpec("sampling_parameters", "TYPE_STRING", (1,), optional=True),
    TensorSpec("exclude_input_in_output", "TYPE_BOOL", (1,), optional=True),
)
OUTPUTS = (TensorSpec("text_output", "TYPE_STRING", (-1,)),)

_SAMPLING_NAMES = frozenset(field.name for field in fields(SamplingParams))
_PRIORITY = "request_priority"
_MAX_TIMEOUT_US = 2**63 - 1
_SHORTEST_DEADLINE_S = 0.001
# Request parameters that the server and its clients set for themselves.
_SERVER_PARAMETERS = frozenset(
    {"id", "priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One request, understood. `echo` puts the prompt before the text; `deadline_s` is seconds from arrival.

    `outputs` are the names of the tensors that the client wants; anything else must not be sent.
    """

    request_id: str
    prompt: str
    params: SamplingParams
    stream: bool
    echo: bool
    priority: int
    deadline_s: float | None
    outputs: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawRequest:
    """A request as the server hands it over: input arrays by name, parameters as JSON text, timeout in microseconds."""

    tensors: Mapping[str, Array]
    parameters: str
    request_id: str
    timeout_us: int
    outputs: frozenset[str]


def decode_request(raw: RawRequest, decoupled: bool) -> GenerateRequest:
    """Reads a request. Raises InvalidRequest that names the input or parameter at fault.

    A model that is not decoupled sends one response a request, so it cannot stream.
    """
    prompt = _text(raw.tensors, "text_input")
    if prompt is None:
        raise InvalidRequest("text_input", None, "a string: the input is required")
    stream = bool(_flag(raw.tensors, "stream"))
    if stream and not decoupled:
        raise InvalidRequest("stream", True, "false, since this model is configured with decoupled: false")
    exclude_input = _flag(raw.tensors, "exclude_input_in_output")
    if stream and exclude_input is False:
        text = "When streaming, `exclude_input_in_output` = False is not allowed."
        raise _FixedText("exclude_input_in_output", False, text)
    parameters = _json_object("parameters", raw.parameters or "{}")
    sampling_text = _text(raw.tensors, "sampling_parameters")
    if sampling_text is None:
        sampling = _sampling_of_parameters(parameters)
    else:
        sampling = _json_object("sampling_parameters", sampling_text)
    priority = sampling.pop(_PRIORITY, None) or parameters.get(_PRIORITY)
    return GenerateRequest(
        request_id=raw.request_id,
        prompt=prompt,
        params=SamplingParams.from_mapping(sampling),
        stream=stream,
        echo=not stream and not exclude_input,
        priority=0 if priority is None else _whole_number(_PRIORITY, priority),
        deadline_s=_deadline(raw.timeout_us, parameters),
        outputs=raw.outputs,
    )


class _FixedText(InvalidRequest):
    """An InvalidRequest whose whole text is fixed by the contract."""

    def __init__(self, parameter: str, value: object, text: str) -> None:
        super().__init__(parameter, value, text)
        self.args = (text,)


def _element(tensors: Mapping[str, Array], name: str) -> Any:
    array = tensors.get(name)
    if array is None:
        return None
    if array.size != 1:
        raise InvalidRequest(name, f"a tensor of {array.size} elements", "exactly one")
    return array.reshape(-1).tolist()[0]


def _text(tensors: Mapping[str, Array], name: str) -> str | None:
    value = _element(tensors, name)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise InvalidRequest(name, value, "a string (datatype BYTES)")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(name, value, f"UTF-8 text (byte {error.start} is not)") from None


def _flag(tensors: Mapping[str, Array], name: str) -> bool | None:
    value = _element(tensors, name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(name, value, "true or false (datatype BOOL)")
    return value


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidRequest(name, text, f"a JSON object ({reason})") from None
    if not isinstance(value, dict):
        raise InvalidRequest(name, value, "a JSON object")
    return value


def _sampling_of_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters among the request's parameters.

    Proxies add parameters of their own (the server forwards headers as such), so an unknown one is no error, unless it
    is so near to a known name that it must be a slip.
    """
    sampling = {}
    for name, value in parameters.items():
        if name in _SAMPLING_NAMES or name == _PRIORITY:
            sampling[name] = value
        elif name not in _SERVER_PARAMETERS and not name.startswith(("_", "triton_")):
            near = get_close_matches(name, _SAMPLING_NAMES, n=1, cutoff=0.8)
            if near:
                raise InvalidRequest("request parameter", name, near[0])
            logger.warning("unknown request parameter %r is ignored", name)
    return sampling


def _whole_number(name: str, value: object) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise InvalidRequest(name, value, "a whole number") from None


def _deadline(timeout_us: int, parameters: Mapping[str, Any]) -> float | None:
    """The server's own field where the client can set it (gRPC); /generate leaves it among the parameters."""
    timeout_us = timeout_us or _whole_number("timeout", parameters.get("timeout", 0))
    if not 0 <= timeout_us <= _MAX_TIMEOUT_US:
        raise InvalidRequest("timeout", timeout_us, f"microseconds from 0 to {_MAX_TIMEOUT_US}")
    # However short, it is a time limit that runs out, not a bad parameter.
    return max(timeout_us / 1e6, _SHORTEST_DEADLINE_S) if timeout_us else None


def encode_output(request: GenerateRequest, output: RequestOutput) -> dict[str, Array]:
    """The output tensors of one response, by name: only those that the client asked for.

    Every response has one element for each of the n sequences, also for those that have nothing new.
    """
    by_index = {completion.index: completion for completion in output.outputs}
    completions = [by_index.get(i) or CompletionOutput(index=i) for i in range(request.params.n)]
    return {name: encode(request, completions) for name, encode in _ENCODERS.items() if name in request.outputs}


def has_news(output: RequestOutput) -> bool:
    """Whether a client would see anything of this delta: text is held back while it may become a stop string."""
    return output.finished or any(c.text or c.finish_reason is not None for c in output.outputs)


def _text_output(request: GenerateRequest, completions: Sequence[CompletionOutput]) -> Array:
    head = request.prompt if request.echo else ""
    return np.array([(head + completion.text).encode("utf-8") for completion in completions], dtype=np.object_)


_ENCODERS = {"text_output": _text_output}
