"""Vectors onto the wire: the output of a request that asks for one, to output tensors.

Knows no server object, no stream and no thread.
"""

from __future__ import annotations

import json

import numpy as np

from octavo.outputs import RequestOutput
from octavo.v2.embed_request import EmbedRequest
from octavo.v2.response_codec import PER_REQUEST, as_strings
from octavo.v2.tensors import TEXT_OUTPUT, Array


class EmbedEncoder:
    """Writes the one response of one request."""

    def __init__(self, request: EmbedRequest) -> None:
        self._request = request

    def has_news(self, output: RequestOutput) -> bool:
        """Whether there is anything to send yet."""
        return output.finished

    def encode(self, output: RequestOutput) -> dict[str, Array]:
        """The tensors that the client asked for, by name: the vector is `text_output`, a JSON list of its numbers."""
        assert output.embedding is not None
        wanted = self._request.outputs
        (completion,) = output.outputs
        tensors = {
            TEXT_OUTPUT: as_strings([json.dumps(output.embedding.tolist())]),
            "finish_reason": as_strings([completion.finish_reason.value if completion.finish_reason else "None"]),
            "num_output_tokens": np.zeros(1, dtype=np.uint32),
        }
        tensors |= {name: write(output) for name, write in PER_REQUEST.items()}
        return {name: array for name, array in tensors.items() if name in wanted}
