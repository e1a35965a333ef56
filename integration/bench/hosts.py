"""The hosts as a benchmark needs them: a real server with one model, and the streams that ask it for a workload.

Knows what each host's requests and responses look like; nothing of times and ratios.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import streams
from streams import Stream

from octavo.workloads import Item

# The servers of the integration tests.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from kserve_server import KServeServer
from model_repositories import KIND_MODEL, add_model, options_for

from octavo_triton.launch import TritonServer

MODEL = "bench"


@dataclass(frozen=True, slots=True)
class Host:
    """A running server. `stream` makes the request for a prompt; `times` tells when each piece of text of one that has
    ended came, or raises StreamFailed if it did not end well.
    """

    pid: int
    stream: Callable[[str, Item], Stream]
    times: Callable[[Stream], list[float]]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far: of the server, of its Python stub where it has one, of the engine and of this client."""
        server = psutil.Process(self.pid)
        found = {"client": _seconds(psutil.Process()), "server": _seconds(server)}
        for child in server.children(recursive=True):
            kind = "engine" if "octavo.engine_process" in " ".join(child.cmdline()) else "stub"
            found[kind] = found.get(kind, 0.0) + _seconds(child)
        return found


def sampling(item: Item) -> dict[str, Any]:
    """What both hosts are told: exactly these lengths, and the tokens that the engine alone chooses as well."""
    return {
        "temperature": 0,
        "max_tokens": item.num_output_tokens,
        "ignore_eos": True,
        "truncate_prompt_tokens": len(item.prompt_token_ids),
    }


@contextmanager
def triton(folder: Path, arguments: dict[str, Any], server_dir: Path) -> Iterator[Host]:
    """The Triton server, asked over gRPC: each request in a stream of its own, for the text alone."""
    # Beside the SDK, which the other host's client never imports, these would not load.
    from tritonclient.grpc import service_pb2

    add_model(folder / "models", MODEL, KIND_MODEL, **arguments)
    with TritonServer(options_for(folder / "models", server_dir, load_models=None)) as server:

        def stream(text: str, item: Item) -> Stream:
            request = service_pb2.ModelInferRequest(model_name=MODEL)
            values = {"text_input": text.encode(), "sampling_parameters": json.dumps(sampling(item)).encode()}
            for name, value in values.items():
                request.inputs.add(name=name, datatype="BYTES", shape=[1]).contents.bytes_contents.append(value)
            request.inputs.add(name="stream", datatype="BOOL", shape=[1]).contents.bool_contents.append(True)
            url = f"http://{server.grpc_address}/inference.GRPCInferenceService/ModelStreamInfer"
            return streams.grpc(url, request.SerializeToString())

        def times(done: Stream) -> list[float]:
            if done.headers_seen.get("grpc-status") != "0":
                raise streams.StreamFailed(f"a stream ended with {done.headers_seen}")
            for message in done.messages:
                if error := service_pb2.ModelStreamInferResponse.FromString(message).error_message:
                    raise streams.StreamFailed(error)
            return done.times

        yield Host(server.pid, stream, times)


@contextmanager
def kserve(folder: Path, arguments: dict[str, Any], server_dir: Path) -> Iterator[Host]:
    """The KServe predictor, asked for OpenAI completions as server-sent events."""
    model = {"model_name": MODEL} | {{"model": "model_dir"}.get(name, name): value for name, value in arguments.items()}
    with KServeServer(folder / "kserve.log", *(f"--{name}={_flag(value)}" for name, value in model.items())) as server:

        def stream(text: str, item: Item) -> Stream:
            body = {"model": MODEL, "prompt": text, "stream": True} | sampling(item)
            return streams.server_sent(f"{server.url}/v1/completions", json.dumps(body).encode())

        def times(done: Stream) -> list[float]:
            if done.messages[-1] != b"[DONE]":
                raise streams.StreamFailed(f"a stream ended with {done.messages[-1]!r}")
            reasons = [json.loads(event)["choices"][0]["finish_reason"] for event in done.messages[:-1]]
            if [reason for reason in reasons if reason] != ["length"]:
                raise streams.StreamFailed(f"a stream has the finish reasons {set(reasons)}")
            return done.times[:-1]

        yield Host(server.process.pid, stream, times)


HOSTS = {"triton": triton, "kserve": kserve}


def _flag(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
