"""The route of the v2 protocol's repository extension that the SDK has not: which models there are. Knows no engine."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

import octavo
from octavo_kserve.generate import read_json_object
from octavo_kserve.repository import Repository


def create_index_router(repository: Repository) -> APIRouter:
    """One route; a body is optional, `{"ready": true}` leaves out what is not ready."""
    router = APIRouter(tags=["repository"])

    @router.post("/v2/repository/index", response_model=None)
    async def index(request: Request) -> Response:
        body = await read_json_object(request) if await request.body() else {}
        only_ready = octavo.parse_bool("ready", body.get("ready", False))
        return JSONResponse([each for each in repository.index() if each["state"] == "READY" or not only_ready])

    return router
