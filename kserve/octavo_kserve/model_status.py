"""What the v2 protocol tells of one model, with its version, of which there is one, or without.

Knows no tensor and no engine.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from kserve.errors import ModelNotReady
from kserve.protocol.dataplane import DataPlane

from octavo_kserve.described import answers, described
from octavo_kserve.errors import UnknownModel
from octavo_kserve.generate import MODEL_VERSION

_METADATA = described("Describe a model", answers("ModelMetadata"), errors=[404])
_READY = described("Is a model ready?", answers("ModelReady"), errors=[404, 503])


def create_status_router(dataplane: DataPlane) -> APIRouter:
    """The routes below /v2/models. What is wrong with a request is raised."""
    router = APIRouter(tags=["V2"])

    async def metadata(name: str) -> Response:
        return JSONResponse(await dataplane.model_metadata(name))

    async def ready(name: str) -> Response:
        if not await dataplane.model_ready(name):
            raise ModelNotReady(name)
        return JSONResponse({"name": name, "ready": True})

    async def other_version(name: str, version: str) -> Response:
        raise UnknownModel(f"{name}/versions/{version}")

    for path in ("/v2/models/{name}", f"/v2/models/{{name}}/versions/{MODEL_VERSION}"):
        router.add_api_route(path, metadata, **_METADATA)
        router.add_api_route(f"{path}/ready", ready, **_READY)
    # The SDK's answer would be that there are no versions.
    for path in ("/v2/models/{name}/versions/{version}", "/v2/models/{name}/versions/{version}/ready"):
        router.add_api_route(path, other_version, include_in_schema=False)
    return router
