"""Requests of the conformance suite as inputs of the v2 protocol, and its outputs as the suite's pieces and answers.

Knows values by name; not how they travel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.testing import Answer, Ask, Piece

WANTED = ("finish_reason", "num_input_tokens", "num_output_tokens")


def request_of(ask: Ask, stream: bool) -> dict[str, Any]:
    """The inputs by name."""
    return {
        "text_input": ask.prompt,
        "sampling_parameters": json.dumps(dict(ask.parameters)),
        "stream": stream,
        "exclude_input_in_output": True,
    } | {f"return_{name}": True for name in WANTED}


class Reader:
    """Reads the responses of one request. Finish reasons stay in later responses: owns those that have been seen."""

    def __init__(self) -> None:
        self._reasons: dict[int, str] = {}

    def piece(self, outputs: Mapping[str, Any]) -> Piece:
        """What one response of a stream brings."""
        reasons = {i: reason for i, reason in enumerate(_list(outputs["finish_reason"])) if reason != "None"}
        texts = dict(enumerate(_list(outputs["text_output"])))
        if len(reasons) == 1 == len(texts):
            # With one completion none can come after its reason: a second one is not hidden from the suite.
            fresh = reasons
        else:
            fresh = {i: reason for i, reason in reasons.items() if i not in self._reasons}
        self._reasons |= reasons
        return Piece(
            texts=texts,
            finish_reasons=fresh,
            num_prompt_tokens=_list(outputs["num_input_tokens"])[0],
            num_output_tokens=sum(_list(outputs["num_output_tokens"])),
        )

    def whole(self, outputs: Mapping[str, Any]) -> Answer:
        """The only response."""
        return Answer(
            texts=tuple(_list(outputs["text_output"])),
            finish_reasons=tuple(_list(outputs["finish_reason"])),
            num_prompt_tokens=_list(outputs["num_input_tokens"])[0],
            num_output_tokens=sum(_list(outputs["num_output_tokens"])),
        )


def _list(value: Any) -> list[Any]:
    """JSON has no list around a single element."""
    return value if isinstance(value, list) else [value]
