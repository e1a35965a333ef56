"""Real clients of a Triton server: plain HTTP and tritonclient's gRPC streams, and what a test reads off the server."""

from __future__ import annotations

import http.client
import json
import queue
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as grpcclient

from octavo_triton.launch import TritonServer

WAIT_S = 60
GREEDY = {"temperature": 0}


def post(
    server: TritonServer, path: str, body: object, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Posts JSON, or bytes as they are; the status and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.options.http_port, timeout=WAIT_S)
    try:
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), dict(headers or {}))
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    finally:
        connection.close()


def generate(server: TritonServer, body: object) -> tuple[int, dict[str, Any]]:
    """Posts to /generate."""
    return post(server, "/v2/models/smollm2/generate", body)


def text_of(server: TritonServer, prompt: str, **parameters: Any) -> str:
    """The completion of a prompt, by /generate."""
    body = {"text_input": prompt, "exclude_input_in_output": True} | GREEDY | parameters
    status, answer = generate(server, body)
    assert status == 200, answer
    return str(answer["text_output"])


@contextmanager
def http_stream(
    server: TritonServer, body: dict[str, Any], model: str = "smollm2"
) -> Iterator[Iterator[dict[str, Any]]]:
    """Posts to /generate_stream; the events as they come. Leaving the block closes the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", server.options.http_port, timeout=WAIT_S)
    try:
        connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps({"stream": True} | body))
        # The response keeps the socket open beyond its connection's end.
        with connection.getresponse() as response:
            yield (json.loads(line[6:]) for line in response if line.startswith(b"data: "))
    finally:
        connection.close()


def http_stream_text(server: TritonServer, body: dict[str, Any]) -> str:
    """The concatenated deltas of /generate_stream."""
    with http_stream(server, body) as events:
        return "".join(event["text_output"] for event in events)


def leave(server: TritonServer, path: str, body: dict[str, Any], after: Callable[[], bool]) -> None:
    """Posts, waits until `after()` holds, and closes the connection without reading."""
    connection = http.client.HTTPConnection("127.0.0.1", server.options.http_port, timeout=WAIT_S)
    connection.request("POST", f"/v2/models/smollm2/{path}", json.dumps(body))
    wait_until(after)
    connection.close()


class GrpcStream:
    """One request over a gRPC stream of its own. Iterate it for the responses; ends after the final one.

    `final_flags` tells for each response whether it was marked as the last.
    """

    def __init__(self, server: TritonServer, text: str | bytes, parameters: dict[str, Any], **inputs: bool) -> None:
        self.final_flags: list[bool] = []
        self._arrived: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._client = grpcclient.InferenceServerClient(server.grpc_address)
        self._client.start_stream(callback=lambda result, error: self._arrived.put((result, error)))
        tensors = request_tensors(text, parameters, **inputs)
        self._client.async_stream_infer("smollm2", tensors, enable_empty_final_response=True)

    def __iter__(self) -> Iterator[list[str]]:
        """The texts of each response; an error ends the stream and is raised."""
        while True:
            result, error = self._arrived.get(timeout=WAIT_S)
            if error is not None:
                raise error
            response = result.get_response()
            self.final_flags.append(response.parameters["triton_final_response"].bool_param)
            if response.outputs:
                yield [text.decode() for text in result.as_numpy("text_output")]
            if self.final_flags[-1]:
                return

    def text(self) -> str:
        """The concatenated first texts of all responses."""
        return "".join(texts[0] for texts in self)

    def cancel(self) -> None:
        """Cancels the request and closes the stream."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()

    def vanish(self) -> None:
        """Closes the connection without a word, as a client does that is killed."""
        self._client._channel.close()

    def close(self) -> None:
        """Closes the stream of a request that has ended."""
        self._client.stop_stream()
        self._client.close()


@contextmanager
def grpc_stream(
    server: TritonServer, headers: dict[str, str] | None = None
) -> Iterator[tuple[grpcclient.InferenceServerClient, Callable[[], tuple[Any, Any]]]]:
    """A gRPC stream for any number of requests: the client to send them by, and what brings (result, error) of one."""
    arrived: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(callback=lambda result, error: arrived.put((result, error)), headers=headers)
        yield client, lambda: arrived.get(timeout=WAIT_S)


def grpc_text(server: TritonServer, prompt: str, stream: bool = True, **parameters: Any) -> str:
    """The completion of a prompt over gRPC, greedy unless told otherwise."""
    client = GrpcStream(server, prompt, GREEDY | parameters, stream=stream, exclude_input_in_output=True)
    try:
        return client.text()
    finally:
        client.close()


def request_tensors(text: str | bytes, parameters: dict[str, Any], **inputs: bool) -> list[grpcclient.InferInput]:
    """The inputs of a request: the prompt, its sampling parameters, and flags by name."""
    given = {"text_input": text, "sampling_parameters": json.dumps(parameters)}
    return tensors_of(grpcclient, given | inputs)


def tensors_of(client_module: Any, inputs: Mapping[str, str | bytes | bool]) -> list[Any]:
    """Inputs by name as one of tritonclient's modules (http, grpc) wants them."""
    tensors = []
    for name, value in inputs.items():
        tensor = client_module.InferInput(name, [1], "BOOL" if isinstance(value, bool) else "BYTES")
        element = value.encode() if isinstance(value, str) else value
        tensor.set_data_from_numpy(np.array([element], dtype=bool if isinstance(value, bool) else np.object_))
        tensors.append(tensor)
    return tensors


def config_of(server: TritonServer, model: str) -> dict[str, Any]:
    """The model's configuration, as the server has completed it."""
    with urllib.request.urlopen(f"{server.http_url}/v2/models/{model}/config", timeout=WAIT_S) as answer:
        config: dict[str, Any] = json.load(answer)
    return config


def gauge(server: TritonServer, name: str) -> float:
    """A gauge of the model, from the server's metrics page."""
    with urllib.request.urlopen(server.metrics_url, timeout=WAIT_S) as page:
        for line in page.read().decode().splitlines():
            if line.startswith(name + "{"):
                return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"{name} is not on {server.metrics_url}")


def metric_lines(server: TritonServer) -> Iterator[tuple[str, dict[str, str], float]]:
    """Every line of the metrics page: name, labels, value."""
    with urllib.request.urlopen(server.metrics_url, timeout=WAIT_S) as page:
        for line in page.read().decode().splitlines():
            if not line.startswith("#"):
                series, value = line.rsplit(" ", 1)
                yield series.split("{")[0], dict(re.findall(r'(\w+)="(.*?)"', series)), float(value)


def metric_types(server: TritonServer) -> dict[str, str]:
    """Each metric's type, as the metrics page declares it."""
    with urllib.request.urlopen(server.metrics_url, timeout=WAIT_S) as page:
        lines = page.read().decode().splitlines()
    return {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE ")}


def is_idle(server: TritonServer) -> bool:
    """Whether nothing runs or waits and every KV block is free."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return all(gauge(server, name) == 0 for name in names)


def wait_until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Looks again and again until `condition()` holds; fails after `timeout_s`."""
    never = threading.Event()
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"not within {timeout_s} s"
        never.wait(0.02)


def processes(server: TritonServer) -> dict[str, list[psutil.Process]]:
    """What the server runs: itself, a stub for each model, an engine process for each model."""
    root = psutil.Process(server.pid)
    found: dict[str, list[psutil.Process]] = {"server": [root], "stub": [], "engine": []}
    for child in root.children(recursive=True):
        # One that ends while we look.
        with suppress(psutil.NoSuchProcess):
            command = " ".join(child.cmdline())
            if "octavo.engine_process" in command:
                found["engine"].append(child)
            elif "triton_python_backend_stub" in command:
                found["stub"].append(child)
    return found
