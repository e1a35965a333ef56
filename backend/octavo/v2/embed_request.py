"""EmbedRequest: a request for one vector, and how `embedding_request` is read: the contract's JSON object.

Knows no server object and no stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.errors import InvalidRequest
from octavo.parsing import parse_mapping
from octavo.pooling_params import PoolingParams

EMBEDDING_REQUEST = "embedding_request"
_KINDS = "a text, or a list of token ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """One request for a vector, understood. `deadline_s` is seconds from arrival.

    `outputs` are the names of the tensors to send: nothing else may be. There is one response.
    """

    request_id: str
    prompt: str | list[int]
    params: PoolingParams
    priority: int
    cache_salt: str
    deadline_s: float | None
    outputs: frozenset[str]

    @property
    def stream(self) -> bool:
        """Whether there may be more than one response."""
        return False


def read_input(asked: Mapping[str, Any]) -> str | list[int]:
    """What the vector is to be made of. Which token ids there are is checked where the model is known."""
    value = asked.get("input")
    if isinstance(value, str) or (
        isinstance(value, list) and value and all(type(token_id) is int for token_id in value)
    ):
        return value
    raise InvalidRequest(f"{EMBEDDING_REQUEST}.input", value, _KINDS)


def read_pooling(asked: Mapping[str, Any]) -> PoolingParams:
    """The parameters, which may stand in `pooling_params`, where `dimensions` may be a list of one."""
    where, known = f"{EMBEDDING_REQUEST}.pooling_params", PoolingParams.parameter_names()
    inner = asked.get("pooling_params")
    inner = {} if inner is None else parse_mapping(where, inner)
    for name in inner:
        if name not in known:
            raise InvalidRequest(where, name, "one of " + ", ".join(sorted(known)))
    given = {name: asked.get(name) for name in known} | dict(inner)
    dimensions = given.get("dimensions")
    if isinstance(dimensions, list) and len(dimensions) == 1:
        given["dimensions"] = dimensions[0]
    return PoolingParams.from_mapping(given)
