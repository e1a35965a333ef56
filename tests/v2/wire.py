"""Requests as the server hands them over, and outputs as the engine does, for tests of both codecs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from octavo import CompletionOutput, RequestOutput, Usage
from octavo.v2.request_codec import ModelFacts, RawRequest, decode_request
from octavo.v2.tensors import OUTPUTS, Array

ALL_OUTPUTS = frozenset(spec.name for spec in OUTPUTS)


def decode(
    parameters: dict[str, Any] | None = None,
    timeout_us: int = 0,
    facts: ModelFacts = ModelFacts("smol", decoupled=True),  # noqa: B008  # it is frozen
    outputs: frozenset[str] = ALL_OUTPUTS,
    **inputs: Any,
) -> Any:
    """Reads a request with these inputs by name; None leaves one out, text_input is "hello" unless given."""
    given = {"text_input": "hello"} | inputs
    raw = RawRequest(
        tensors={name: as_array(value) for name, value in given.items() if value is not None},
        parameters=json.dumps(parameters or {}),
        request_id="r1",
        timeout_us=timeout_us,
        outputs=outputs,
    )
    return decode_request(raw, facts)


def as_array(value: Any) -> Array:
    """An array is taken as it is; any other value becomes a tensor of one element."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str):
        return np.array([value.encode()], dtype=np.object_)
    return np.array([value], dtype=np.object_ if isinstance(value, bytes) else None)


def output(*completions: CompletionOutput, finished: bool = False, num_prompt_tokens: int = 5) -> RequestOutput:
    """What a stream brings."""
    return RequestOutput(
        request_id="r1",
        prompt=None,
        prompt_token_ids=[1] * num_prompt_tokens,
        outputs=list(completions),
        usage=Usage(num_prompt_tokens, 1, 0),
        finished=finished,
    )
