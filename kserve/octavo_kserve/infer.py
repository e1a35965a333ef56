"""v2 infer over REST: the SDK's own route, but for bodies that say nothing, or nothing true, of their content type.

Clients of the protocol send none; curl sends a form's. What the body is, its own header tells. Knows no tensor.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from kserve.errors import InvalidInput
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.infer_type import InferRequest
from kserve.protocol.rest.v2_datamodels import InferenceRequest
from pydantic import ValidationError

import octavo
from octavo.v2 import INPUTS
from octavo_kserve.described import also_binary, answers, described
from octavo_kserve.generate import MODEL_VERSION, read_json_object

# How many bytes of JSON stand before the binary tensors; in a response too.
_JSON_LENGTH = "inference-header-content-length"
_INFER = also_binary(
    described("Infer", answers("Inferred"), "InferRequest", errors=(400, 404, 408, 413, 429, 500, 503))
)


def create_infer_router(dataplane: DataPlane) -> APIRouter:
    """The routes below /v2/models. What is wrong with a request is raised."""
    router = APIRouter(tags=["V2"])

    async def infer(name: str, request: Request) -> Response:
        # Before the body is read. Raises for a model that takes no requests.
        await dataplane.get_model(name)
        headers = dict(request.headers)
        found, _ = await dataplane.infer(name, await _read(request, name), headers)
        body, json_length = found.to_rest()
        if json_length is None:
            return JSONResponse(body)
        return Response(body, headers={_JSON_LENGTH: str(json_length)}, media_type="application/octet-stream")

    for path in ("/v2/models/{name}/infer", f"/v2/models/{{name}}/versions/{MODEL_VERSION}/infer"):
        router.add_api_route(path, infer, methods=["POST"], **_INFER)
    return router


async def _read(request: Request, name: str) -> Any:
    """The SDK's form of the request. Raises InvalidRequest, or the SDK's InvalidInput."""
    json_length = request.headers.get(_JSON_LENGTH)
    if json_length is not None:
        body = await request.body()
        length = octavo.parse_int(_JSON_LENGTH, json_length, 0, len(body))
        try:
            return InferRequest.from_bytes(body, length, name)
        except InvalidInput:
            raise
        except Exception as error:
            # It takes the JSON to be what it should.
            raise octavo.InvalidRequest("body", type(error).__name__, "an inference request with its tensors") from None
    found = await read_json_object(request)
    tensors = found.get("inputs")
    if isinstance(tensors, list) and len(tensors) > len(INPUTS):
        # To look at many would make everybody wait.
        raise octavo.InvalidRequest("inputs", f"{len(tensors)} tensors", f"at most {len(INPUTS)}")
    try:
        return InferRequest.from_inference_request(InferenceRequest.model_validate(found), name)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise octavo.InvalidRequest(where, first["input"], str(first["msg"])) from None
