"""Summarises a text in two calls of the language model; the second one's stream goes through to the client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

LANGUAGE_MODEL = "smollm2"
MAX_CONCURRENT = 32


class TritonPythonModel:
    """Each request runs in a thread of its own: `execute` returns at once, so that requests overlap in the engine."""

    def initialize(self, args: dict[str, str]) -> None:
        """Starts the threads."""
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT)

    def execute(self, requests: list[Any]) -> None:
        """Hands each request to a thread, with what it needs of it: a request is the server's again afterwards."""
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
            stream = pb_utils.get_input_tensor_by_name(request, "stream")
            wanted = stream is not None and bool(stream.as_numpy()[0])
            self._threads.submit(self._run, request.get_response_sender(), text, wanted)

    def finalize(self) -> None:
        """Waits for the requests in flight."""
        self._threads.shutdown()

    def _run(self, sender: Any, text: str, stream: bool) -> None:
        # Whatever happens, the last thing sent is the final flag: without it the client waits for ever.
        try:
            points = "".join(ask(f"List the three key points of this text:\n\n{text}", max_tokens=60, stream=False))
            for piece in ask(f"Summarise in one sentence:\n\n{points}", max_tokens=60, stream=stream):
                if sender.is_cancelled():
                    break
                tensor = pb_utils.Tensor("text_output", np.array([piece.encode()], dtype=np.object_))
                sender.send(pb_utils.InferenceResponse(output_tensors=[tensor]))
        except Exception as error:
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))))
        finally:
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def ask(question: str, max_tokens: int, stream: bool) -> Iterator[str]:
    """The language model's answer: its pieces, or with `stream` false one piece. Raises what the model reports.

    A caller that stops iterating leaves the rest to be generated: max_tokens bounds that.
    """
    messages = [{"role": "user", "content": question}]
    sampling = {"max_tokens": max_tokens, "temperature": 0}
    request = pb_utils.InferenceRequest(
        model_name=LANGUAGE_MODEL,
        # Only what is named here is generated and sent.
        requested_output_names=["text_output"],
        inputs=[
            pb_utils.Tensor("text_input", np.array([b""], dtype=np.object_)),
            pb_utils.Tensor("messages", np.array([json.dumps(messages).encode()], dtype=np.object_)),
            pb_utils.Tensor("sampling_parameters", np.array([json.dumps(sampling).encode()], dtype=np.object_)),
            pb_utils.Tensor("stream", np.array([stream])),
            pb_utils.Tensor("exclude_input_in_output", np.array([True])),
        ],
    )
    # The language model is decoupled, so its responses come as an iterator, also when there is only one.
    for response in request.exec(decoupled=True):
        if response.has_error():
            raise pb_utils.TritonModelException(response.error().message())
        # The end of the responses may come as one without tensors.
        for tensor in response.output_tensors():
            yield tensor.as_numpy()[0].decode()
