"""PoolingParams: what a request for a vector may ask for, checked in one place; and how like two vectors are.

Knows no model: whether it can give shorter vectors is checked at submit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import InvalidRequest
from octavo.parsing import parse_bool, parse_int, parse_mapping, parse_text

_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """How to make one vector of a prompt. Field names follow vLLM's.

    dimensions: how many numbers, None for all; fewer only of a model that was trained for it. normalize: whether the
    vector has length 1, None for what the model's own files say. truncate_prompt_tokens: so many tokens of a longer
    prompt are taken, from its beginning, those included that the tokenizer puts around a text; -1 for as many as the
    model can take, None to refuse a longer one. Of a pair of texts the document is cut. prompt_name: which of the
    model's own prompts is put before a text, None for the one that its files name, if any. Raises InvalidRequest that
    names the field.
    """

    dimensions: int | None = None
    normalize: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        for name, parse in _PARSERS.items():
            value = getattr(self, name)
            if value is not None:
                # The one place where a frozen field is set: while the object is being made.
                object.__setattr__(self, name, parse(name, value))
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequest("truncate_prompt_tokens", 0, "at least 1, or -1 for as many as the model can take")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object], **defaults: object) -> PoolingParams:
        """Reads what a client sent: numbers and booleans may be strings, null means the default.

        `defaults` stand in for what is absent or null. Raises InvalidRequest for an unknown key, naming it.
        """
        known = dict(defaults)
        for name, value in parse_mapping("pooling_parameters", mapping).items():
            if name not in _PARSERS:
                raise InvalidRequest("pooling_parameters", name, "one of " + ", ".join(sorted(_PARSERS)))
            if value is not None:
                known[name] = value
        return cls(**known)  # type: ignore[arg-type]  # each value is parsed by its field's own parser

    @staticmethod
    def parameter_names() -> frozenset[str]:
        """Every name that `from_mapping` knows."""
        return frozenset(field.name for field in fields(PoolingParams))


def cosine_similarity(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The cosine of the angle between two vectors [n], from -1 to 1; 0 where one of them is all zeros."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    lengths = float(np.linalg.norm(wide_a) * np.linalg.norm(wide_b))
    return min(max(float(wide_a @ wide_b) / lengths, -1.0), 1.0) if lengths else 0.0


def _between(low: int) -> Callable[[str, object], int]:
    return lambda name, value: parse_int(name, value, low, _INT32_MAX)


_PARSERS: dict[str, Callable[[str, object], Any]] = {
    "dimensions": _between(1),
    "normalize": parse_bool,
    "truncate_prompt_tokens": _between(-1),
    "prompt_name": parse_text,
}
