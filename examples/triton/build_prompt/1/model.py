"""Turns a question into a chat, which the language model renders with its own template: no special tokens here."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

SYSTEM = "You answer in one short sentence."


class TritonPythonModel:
    """One response for each request, right away: such a model needs no response sender and is not decoupled."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Gives each question's messages."""
        return [self._messages(request) for request in requests]

    def _messages(self, request: Any) -> Any:
        question = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        tensors = [
            # The model's text_input is required, and may be empty beside messages.
            pb_utils.Tensor("prompt", np.array([b""], dtype=np.object_)),
            pb_utils.Tensor("messages", np.array([json.dumps(messages).encode()], dtype=np.object_)),
            pb_utils.Tensor("exclude_input_in_output", np.array([True])),
        ]
        return pb_utils.InferenceResponse(output_tensors=tensors)
