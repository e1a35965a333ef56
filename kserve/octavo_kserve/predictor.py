"""OctavoModel: one engine as a model of the KServe SDK, which brings v2 infer, over REST and gRPC, and v1 predict.

Translates between the SDK's types and tensors by name; running a request is in `calls`.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from typing import Any

from kserve.model import Model
from kserve.protocol.infer_type import InferInput, InferOutput, InferRequest, InferResponse, to_http_parameters

import octavo
from octavo.v2 import INPUTS, OUTPUTS, Array, RawRequest, TensorSpec
from octavo_kserve.calls import (
    ALL_OUTPUTS,
    MOST_INSTANCES,
    as_json,
    complete,
    datatype,
    facts_of,
    raw_request,
    read_call,
)
from octavo_kserve.generate import MODEL_VERSION
from octavo_kserve.lifecycle import Lifecycle
from octavo_kserve.served_model import ServedModel

_DATATYPE_OF = {spec.name: datatype(spec) for spec in OUTPUTS}


class OctavoModel(Model):
    """What the SDK knows of a model: a view of it without a state of its own, made wherever one is asked for."""

    def __init__(self, served: ServedModel, lifecycle: Lifecycle) -> None:
        super().__init__(served.name)
        self._served = served
        self._lifecycle = lifecycle

    async def healthy(self) -> bool:
        """What readiness probes are told."""
        return self._lifecycle.is_model_ready(self._served)

    def get_input_types(self) -> list[dict[str, Any]]:
        """For the model's metadata."""
        return [_metadata(spec) for spec in INPUTS]

    def get_output_types(self) -> list[dict[str, Any]]:
        """For the model's metadata."""
        return [_metadata(spec) for spec in OUTPUTS]

    async def predict(self, payload: Any, headers: Mapping[str, str] | None = None) -> Any:
        """Answers v2 infer and v1 predict, whole. The SDK cancels it when a gRPC client leaves."""
        if isinstance(payload, InferRequest):
            return await self._infer(payload)
        return {"predictions": await self._predict_instances(payload)}

    async def _infer(self, request: InferRequest) -> InferResponse:
        call = read_call(_raw_request(request), facts_of(self._served, request.model_name), streams=False)
        tensors = await complete(self._served, call)
        asked = [output for output in request.request_outputs or () if output.name in tensors]
        return InferResponse(
            response_id=request.id or "",
            model_name=request.model_name,
            model_version=MODEL_VERSION,
            infer_outputs=[_output(name, array, request.from_grpc) for name, array in tensors.items()],
            use_binary_outputs=request.from_grpc or request.use_binary_outputs,
            requested_outputs=asked or None,
        )

    async def _predict_instances(self, body: Any) -> list[dict[str, Any]]:
        """Each instance is a prompt, or an object as `generate` takes it; they run side by side."""
        if isinstance(body, bytes):
            # Of another content type than JSON's, as curl sends it unless told otherwise.
            body = octavo.parse_json("body", body.decode("utf-8", "replace"))
        instances = body.get("instances") if isinstance(body, Mapping) else None
        if not isinstance(instances, list) or not instances:
            raise octavo.InvalidRequest("instances", instances, "a list of prompts or objects")
        if len(instances) > MOST_INSTANCES:
            raise octavo.InvalidRequest("instances", f"{len(instances)} instances", f"at most {MOST_INSTANCES}")
        facts = facts_of(self._served, self.name)
        calls = [read_call(_instance(i, instance), facts, streams=False) for i, instance in enumerate(instances)]
        tasks = [asyncio.ensure_future(complete(self._served, call)) for call in calls]
        try:
            return [as_json(tensors) for tensors in await asyncio.gather(*tasks)]
        finally:
            # Where one fails, nobody waits for the others.
            for task in tasks:
                task.cancel()


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": datatype(spec), "shape": list(spec.dims)}


def _instance(index: int, instance: object) -> RawRequest:
    if isinstance(instance, str):
        return raw_request({"text_input": instance, "exclude_input_in_output": True})
    if not isinstance(instance, dict):
        raise octavo.InvalidRequest(f"instances[{index}]", instance, "a string or an object")
    return raw_request({"exclude_input_in_output": True} | instance)


def _raw_request(request: InferRequest) -> RawRequest:
    asked = frozenset(output.name for output in request.request_outputs or ())
    unknown = asked - ALL_OUTPUTS
    if unknown:
        raise octavo.InvalidRequest("outputs", min(unknown), f"among {', '.join(sorted(ALL_OUTPUTS))}")
    tensors = {tensor.name: _array(tensor) for tensor in request.inputs}
    if len(tensors) < len(request.inputs):
        raise octavo.InvalidRequest("inputs", [tensor.name for tensor in request.inputs], "each name once")
    return RawRequest(
        tensors=tensors,
        parameters=json.dumps(to_http_parameters(request.parameters or {})),
        request_id=request.id or "",
        timeout_us=0,
        outputs=asked or ALL_OUTPUTS,
    )


def _array(tensor: InferInput) -> Array:
    try:
        array: Array = tensor.as_numpy()
    except (ValueError, TypeError, OverflowError, struct.error) as error:
        allowed = f"data of its shape {tensor.shape} and datatype {tensor.datatype} ({error})"
        raise octavo.InvalidRequest(tensor.name, "the tensor", allowed) from None
    return array


def _output(name: str, array: Array, binary: bool) -> InferOutput:
    output = InferOutput(name, list(array.shape), _DATATYPE_OF[name])
    output.set_data_from_numpy(array, binary_data=binary)
    return output
