"""Two sampled completions in one call; the one with the higher cumulative logprob is the answer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

LANGUAGE_MODEL = "smollm2"
MAX_CONCURRENT = 32
# A seed makes the answer repeatable. At equal lengths the higher sum is the likelier text.
SAMPLING = {"n": 2, "temperature": 0.9, "seed": 1, "max_tokens": 24, "ignore_eos": True}


class TritonPythonModel:
    """Not decoupled, but it answers through a response sender: a returned response would make requests wait in line."""

    def initialize(self, args: dict[str, str]) -> None:
        """Starts the threads, one for each request in flight."""
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT)

    def execute(self, requests: list[Any]) -> None:
        """Hands each request to a thread."""
        for request in requests:
            text_input = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
            self._threads.submit(self._run, request.get_response_sender(), text_input)

    def finalize(self) -> None:
        """Waits for the requests in flight."""
        self._threads.shutdown()

    def _run(self, sender: Any, text_input: Any) -> None:
        try:
            response = pb_utils.InferenceResponse(output_tensors=best_of_two(text_input))
        except Exception as error:
            response = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def best_of_two(text_input: Any) -> list[Any]:
    """The outputs of the likelier completion. Raises what the language model reports."""
    request = pb_utils.InferenceRequest(
        model_name=LANGUAGE_MODEL,
        # Only what is named here is sent, so the optional output has to be, beside the input that asks for it.
        requested_output_names=["text_output", "cumulative_logprob"],
        inputs=[
            pb_utils.Tensor("text_input", text_input),
            pb_utils.Tensor("sampling_parameters", np.array([json.dumps(SAMPLING).encode()], dtype=np.object_)),
            pb_utils.Tensor("exclude_input_in_output", np.array([True])),
            pb_utils.Tensor("return_cumulative_logprob", np.array([True])),
        ],
    )
    outputs: dict[str, Any] = {}
    for response in request.exec(decoupled=True):
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        outputs |= {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    best = int(outputs["cumulative_logprob"].argmax())
    return [pb_utils.Tensor(name, values[best : best + 1]) for name, values in outputs.items()]
