"""A Triton server as the conformance suite sees a host, through tritonclient's gRPC streams."""

from __future__ import annotations

import os
import queue
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import triton_clients as clients
import triton_ways as ways
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException
from v2_events import WANTED, Reader, request_of

from octavo.testing import Answer, Ask, ErrorKind, HostError, HostFacts, Load, Piece
from octavo_triton.errors import PREFIX
from octavo_triton.launch import TritonServer

KINDS = {
    "StatusCode.INVALID_ARGUMENT": ErrorKind.INVALID,
    "StatusCode.NOT_FOUND": ErrorKind.NOT_FOUND,
    "StatusCode.UNAVAILABLE": ErrorKind.UNAVAILABLE,
}
# On a stream the server itself gives no code, and the backend's are both UNAVAILABLE; these texts are fixed.
KIND_OF_TEXT = {
    r"Exceeds maximum queue size: ": ErrorKind.OVERLOADED,
    r"Request timeout expired$": ErrorKind.DEADLINE,
    r"Request for unknown model: '.*' is not found$": ErrorKind.NOT_FOUND,
    r"Request for unknown model: '.*' has no available versions$": ErrorKind.UNAVAILABLE,
}
OUTPUTS = ("text_output", *WANTED)


class TritonHost:
    """One server with one decoupled model, as clients ask it that are told no codes of errors."""

    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, server: TritonServer, model: str, facts: HostFacts) -> None:
        self.server = server
        self.model = model
        self.facts = facts

    def generate(self, ask: Ask) -> Answer:
        call = ways.Call(
            ask.model or self.model,
            request_of(ask, stream=False),
            outputs=OUTPUTS,
            headers=self.headers,
            timeout_us=_microseconds(ask),
        )
        try:
            (response,) = ways.over_grpc_stream(self.server, call)
        except InferenceServerException as error:
            raise _told(error) from error
        return Reader().whole(response)

    @contextmanager
    def stream(self, ask: Ask) -> Iterator[Iterator[Piece]]:
        arrived: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        with grpcclient.InferenceServerClient(self.server.grpc_address) as client:
            client.start_stream(callback=lambda result, error: arrived.put((result, error)))
            client.async_stream_infer(
                ask.model or self.model,
                clients.tensors_of(grpcclient, request_of(ask, stream=True)),
                outputs=[grpcclient.InferRequestedOutput(name) for name in OUTPUTS],
                timeout=_microseconds(ask),
                enable_empty_final_response=True,
            )
            ended = threading.Event()
            try:
                yield _pieces(arrived, ended)
            finally:
                # To cancel a stream that has ended is what in this release keeps a model alive now and then.
                client.stop_stream(cancel_requests=not ended.is_set())

    def close(self) -> None:
        """Each request has a client of its own."""

    def load(self) -> Load:
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        running, waiting, usage = (clients.gauge(self.server, name) for name in names)
        return Load(num_running=int(running), num_waiting=int(waiting), kv_cache_usage=usage)

    def engine_pids(self) -> list[int]:
        return [process.pid for process in clients.processes(self.server)["engine"]]

    def terminate(self) -> None:
        os.kill(self.server.pid, signal.SIGTERM)

    def wait(self) -> int:
        code = self.server.wait()
        assert code is not None
        return code


class TritonHostWithCodes(TritonHost):
    """Answers in one piece come with error codes. A server that is asked so may not end, see `killed_afterwards`."""

    headers: ClassVar[dict[str, str]] = {"triton_grpc_error": "true"}


def _microseconds(ask: Ask) -> int | None:
    return None if ask.deadline_s is None else round(ask.deadline_s * 1e6)


def _pieces(arrived: queue.SimpleQueue[tuple[Any, Any]], ended: threading.Event) -> Iterator[Piece]:
    reader = Reader()
    while not ended.is_set():
        result, error = arrived.get(timeout=clients.WAIT_S)
        if error is not None:
            ended.set()
            raise _told(error)
        response = result.get_response()
        if response.parameters["triton_final_response"].bool_param:
            ended.set()
        if response.outputs:
            yield reader.piece(_values(result))


def _told(error: InferenceServerException) -> HostError:
    text = error.message().removeprefix(PREFIX)
    for pattern, kind in KIND_OF_TEXT.items():
        if re.match(pattern, text):
            return HostError(kind, text)
    return HostError(KINDS.get(str(error.status())), text)


def _values(result: Any) -> dict[str, list[Any]]:
    found = {name: result.as_numpy(name).tolist() for name in OUTPUTS}
    texts = {name: [text.decode() for text in found[name]] for name in ("text_output", "finish_reason")}
    return found | texts
