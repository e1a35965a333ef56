"""Every way into a Triton server, each giving the same thing: the outputs of a request's responses, by name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import triton_clients as clients
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcaio
import tritonclient.http as httpclient

from octavo_triton.launch import TritonServer

Inputs = Mapping[str, str | bytes | bool]
# One response: the values of each output that it brought.
Response = dict[str, list[Any]]


@dataclass(frozen=True)
class Call:
    """One request. `outputs` are those that the client requests: all if None. `parameters` are the request's.

    `timeout_us` is the server's own field, which only gRPC has; on a stream only.
    """

    model: str
    inputs: Inputs
    parameters: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    timeout_us: int | None = None

    def requested(self, client_module: Any) -> list[Any] | None:
        """The requested outputs as one of tritonclient's modules wants them."""
        names = self.outputs
        return None if names is None else [client_module.InferRequestedOutput(name) for name in names]


def over_http(server: TritonServer, call: Call) -> list[Response]:
    """tritonclient's HTTP client; for models with one response only."""
    tensors = clients.tensors_of(httpclient, call.inputs)
    with httpclient.InferenceServerClient(server.http_url.removeprefix("http://")) as client:
        result = client.infer(
            call.model, tensors, outputs=call.requested(httpclient), parameters=call.parameters, headers=call.headers
        )
    return [_values(result, [output["name"] for output in result.get_response()["outputs"]])]


def over_grpc(server: TritonServer, call: Call) -> list[Response]:
    """tritonclient's gRPC client without a stream; for models with one response only."""
    tensors = clients.tensors_of(grpcclient, call.inputs)
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        result = client.infer(call.model, tensors, outputs=call.requested(grpcclient), parameters=call.parameters)
    return [_grpc_values(result)]


def over_grpc_stream(server: TritonServer, call: Call) -> list[Response]:
    """tritonclient's gRPC stream."""
    responses = []
    with clients.grpc_stream(server, call.headers) as (client, next_answer):
        client.async_stream_infer(
            call.model,
            clients.tensors_of(grpcclient, call.inputs),
            outputs=call.requested(grpcclient),
            parameters=call.parameters,
            timeout=call.timeout_us,
            enable_empty_final_response=True,
        )
        while not responses or not responses[-1].pop("final", False):
            result, error = next_answer()
            if error is not None:
                raise error
            responses.append(_grpc_values(result) | _final(result))
    return responses


def over_grpc_aio(server: TritonServer, call: Call) -> list[Response]:
    """tritonclient's gRPC stream for asyncio."""
    return asyncio.run(_over_grpc_aio(server, call))


async def _over_grpc_aio(server: TritonServer, call: Call) -> list[Response]:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {
            "model_name": call.model,
            "inputs": clients.tensors_of(grpcclient, call.inputs),
            "outputs": call.requested(grpcclient),
            "parameters": call.parameters,
            "enable_empty_final_response": True,
        }

    responses = []
    async with grpcaio.InferenceServerClient(server.grpc_address) as client:
        async for result, error in client.stream_infer(requests(), headers=call.headers):
            if error is not None:
                raise error
            responses.append(_grpc_values(result) | _final(result))
            if responses[-1].pop("final", False):
                break
    return responses


def over_generate(server: TritonServer, call: Call) -> list[Response]:
    """Plain HTTP, one answer."""
    body = dict(call.inputs) | call.parameters
    status, answer = clients.post(server, f"/v2/models/{call.model}/generate", body, call.headers)
    assert status == 200, answer
    return [_json_values(answer)]


def over_generate_stream(server: TritonServer, call: Call) -> list[Response]:
    """Plain HTTP, an event each response."""
    body = dict(call.inputs) | call.parameters
    with clients.http_stream(server, body, call.model) as events:
        return [_json_values(event) for event in events]


def whole(responses: list[Response]) -> Response:
    """What a client has in the end: deltas put together, of everything else the last."""
    found: Response = {}
    for response in responses:
        for name, values in response.items():
            old = found.get(name)
            if name == "text_output" and old is not None:
                found[name] = [a + b for a, b in zip(old, values, strict=True)]
            elif name in ("token_ids", "logprobs"):
                new = [json.loads(value) for value in values]
                found[name] = new if old is None or new[0] is None else [a + b for a, b in zip(old, new, strict=True)]
            elif name == "num_output_tokens" and old is not None:
                found[name] = [a + b for a, b in zip(old, values, strict=True)]
            else:
                found[name] = values
    return found


def _grpc_values(result: Any) -> Response:
    return _values(result, [output.name for output in result.get_response().outputs])


def _values(result: Any, names: list[str]) -> Response:
    return {name: [_plain(value) for value in result.as_numpy(name).tolist()] for name in names}


def _final(result: Any) -> dict[str, Any]:
    return {"final": True} if result.get_response().parameters["triton_final_response"].bool_param else {}


def _json_values(answer: dict[str, Any]) -> Response:
    """The server writes a tensor of one element as that element."""
    named = {name: value for name, value in answer.items() if not name.startswith("model_")}
    return {name: value if isinstance(value, list) else [value] for name, value in named.items()}


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
