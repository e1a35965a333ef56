"""The SDK's FastAPI application: our routes before the SDK's, keys and limits before all.

Knows no process, no port and no signal.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady, ServerNotLive, ServerNotReady
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.server import metrics_handler
from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints

import octavo
from octavo_kserve.access import ApiKeys, KeyCheck
from octavo_kserve.connection import ConnectionGuard
from octavo_kserve.errors import UnknownModel
from octavo_kserve.generate import create_generate_router
from octavo_kserve.infer import create_infer_router
from octavo_kserve.lifecycle import Lifecycle
from octavo_kserve.openai import create_router, create_tokenize_router
from octavo_kserve.openai.model_cards import model_card
from octavo_kserve.options import Options
from octavo_kserve.replies import error_response

logger = logging.getLogger(__name__)

_OF_THE_SDK = {
    InvalidInput: HTTPStatus.BAD_REQUEST,
    ModelNotFound: HTTPStatus.NOT_FOUND,
    ModelNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    ServerNotLive: HTTPStatus.SERVICE_UNAVAILABLE,
    ServerNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    NotImplementedError: HTTPStatus.NOT_IMPLEMENTED,
}


class OctavoDataPlane(DataPlane):
    """What the SDK's routes, REST and gRPC, learn of the server's health and its models."""

    def __init__(self, lifecycle: Lifecycle, registry: Any) -> None:
        super().__init__(model_registry=registry)
        self._lifecycle = lifecycle

    async def live(self) -> dict[str, str]:
        """For liveness probes."""
        return {"status": "alive" if self._lifecycle.is_live() else "dead"}

    async def ready(self) -> bool:
        """For readiness probes of the server."""
        return self._lifecycle.is_ready()

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        """For readiness probes of a model; with the flag, for a request, which is taken while probes are told no."""
        model = self.get_model_from_registry(model_name)
        return bool(model.ready if disable_predictor_health_check else await model.healthy())

    async def get_model(self, name: str) -> Any:
        """The model as it is: the SDK would load one again that restarts or drains."""
        return self.get_model_from_registry(name)


class FixedRepository(ModelRepositoryExtension):
    """The models are those of the command line: nothing is loaded or unloaded by request."""

    async def load(self, model_name: str) -> None:
        """Refuses."""
        raise NotImplementedError("models are not loaded by request: name them when the server starts")

    async def unload(self, model_name: str) -> None:
        """Refuses."""
        raise NotImplementedError("models are not unloaded by request")


def mount(app: FastAPI, lifecycle: Lifecycle, dataplane: OctavoDataPlane, options: Options) -> None:
    """Makes `app` the whole HTTP side of this server. For its own: an application cannot be mounted twice."""
    # The SDK's own choice is one that FastAPI warns of.
    app.router.default_response_class = JSONResponse
    app.include_router(_health_router(lifecycle))
    openai = create_router(lifecycle.models)
    for prefix in ("/openai/v1", "/v1"):
        app.include_router(openai, prefix=prefix)
    app.include_router(create_tokenize_router(lifecycle.models))
    app.include_router(create_generate_router(lifecycle.models))
    app.include_router(create_infer_router(dataplane))
    app.add_api_route("/metrics", metrics_handler, methods=["GET"])
    repository = FixedRepository(model_registry=dataplane.model_registry)
    register_v1_endpoints(app, dataplane, repository)
    register_v2_endpoints(app, dataplane, repository)
    for kind, status in _OF_THE_SDK.items():
        app.add_exception_handler(kind, _teller(status))
    app.add_exception_handler(octavo.OctavoError, _tell)
    app.add_exception_handler(Exception, _tell)
    # The last one added is the first to see a request.
    limits = {"max_body_bytes": options.max_body_bytes, "max_header_bytes": options.max_header_bytes}
    app.add_middleware(ConnectionGuard, **limits)
    app.add_middleware(KeyCheck, keys=ApiKeys(options.api_keys))


def _health_router(lifecycle: Lifecycle) -> APIRouter:
    """What the SDK has no route for, or one that tells too little."""
    router = APIRouter(tags=["health"])

    @router.get("/")
    async def root() -> Response:
        live = lifecycle.is_live()
        return JSONResponse({"status": "alive" if live else "dead"}, 200 if live else 503)

    @router.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if lifecycle.is_ready() else 503)

    @router.get("/v1/models/{name:path}")
    async def model_ready(name: str) -> Response:
        model = lifecycle.models.get(name)
        if model is None:
            raise UnknownModel(name)
        if not lifecycle.is_model_ready(model):
            raise octavo.EngineDead(f"model: {name!r} is not ready")
        return JSONResponse(model_card(model, name))

    return router


def _teller(status: HTTPStatus) -> Any:
    async def tell(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status)

    return tell


async def _tell(request: Request, error: Exception) -> Response:
    # What is not ours is a bug: the server logs it, after this.
    return error_response(request.url.path, error)
