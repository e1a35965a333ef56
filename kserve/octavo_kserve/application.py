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
from kserve.model_repository import ModelRepository
from kserve.protocol.dataplane import DataPlane
from kserve.protocol.rest.server import metrics_handler
from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
from starlette.exceptions import HTTPException

import octavo
from octavo_kserve.access import ApiKeys, KeyCheck
from octavo_kserve.anthropic import create_messages_router
from octavo_kserve.api_document import document_with
from octavo_kserve.connection import ConnectionGuard
from octavo_kserve.described import answers, described
from octavo_kserve.embeddings import create_embeddings_router, create_rerank_router, create_score_router
from octavo_kserve.errors import NoSuchMethod, NoSuchRoute, UnknownModel
from octavo_kserve.generate import create_generate_router
from octavo_kserve.infer import create_infer_router
from octavo_kserve.lifecycle import Lifecycle
from octavo_kserve.model_status import create_status_router
from octavo_kserve.openai import create_router, create_tokenize_router
from octavo_kserve.openai.model_cards import model_card
from octavo_kserve.options import Options
from octavo_kserve.page import create_page_router
from octavo_kserve.predictor import OctavoModel
from octavo_kserve.replies import error_response
from octavo_kserve.repository import Repository
from octavo_kserve.repository_index import create_index_router
from octavo_kserve.responses import create_responses_router

logger = logging.getLogger(__name__)

_PAGES = ("text/plain", "application/openmetrics-text")
_METRICS = described("Metrics", {"content": {page: {"schema": {"type": "string"}} for page in _PAGES}})
_LIVE = described("Is it alive?", answers("Status"), errors=[503], style="Status")
_READY = described("Is it ready?", {}, errors=[503], style="")
_MODEL_READY = described("Is a model ready?", answers("Model"), errors=[404, 503], style="Error")
_OF_THE_SDK = {
    InvalidInput: HTTPStatus.BAD_REQUEST,
    ModelNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    ServerNotLive: HTTPStatus.SERVICE_UNAVAILABLE,
    ServerNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    NotImplementedError: HTTPStatus.NOT_IMPLEMENTED,
}


class LiveRegistry(ModelRepository):
    """The SDK's registry, without entries of its own: it shows the models that are served when it is asked."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        super().__init__()
        self._lifecycle = lifecycle

    def get_model(self, name: str) -> OctavoModel | None:
        """The model of this name or alias."""
        served = self._lifecycle.models.get(name)
        return None if served is None else OctavoModel(served, self._lifecycle)

    def get_models(self) -> dict[str, OctavoModel | None]:
        """Those of all names."""
        return {name: self.get_model(name) for model in self._lifecycle.models for name in model.names}


class OctavoDataPlane(DataPlane):
    """What the SDK's routes, REST and gRPC, learn of the server's health and its models."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        super().__init__(model_registry=LiveRegistry(lifecycle))
        self._lifecycle = lifecycle

    async def live(self) -> dict[str, str]:
        """For liveness probes."""
        return {"status": "alive" if self._lifecycle.is_live() else "dead"}

    async def ready(self) -> bool:
        """For readiness probes of the server."""
        return self._lifecycle.is_ready()

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        """For readiness probes of a model; with the flag, for a request: `get_model` refuses one that comes early."""
        model = self.get_model_from_registry(model_name)
        return disable_predictor_health_check or bool(await model.healthy())

    def decode(self, body: Any, headers: Any, *more: Any, **named: Any) -> Any:
        """Reads the body of a v1 request, or of a CloudEvent. Raises InvalidInput or InvalidRequest."""
        try:
            return super().decode(body, headers, *more, **named)
        except InvalidInput:
            raise
        except Exception as error:
            # It takes an event to be what it should.
            raise octavo.InvalidRequest(
                "body", type(error).__name__, "a request, or a CloudEvent with its data"
            ) from None

    async def get_model(self, name: str) -> Any:
        """For a request. Raises UnknownModel, ModelLoading; the SDK would load one anew that restarts."""
        self._lifecycle.models.find(name)
        return self.get_model_from_registry(name)


def mount(
    app: FastAPI, lifecycle: Lifecycle, dataplane: OctavoDataPlane, repository: Repository, options: Options
) -> None:
    """Makes `app` the whole HTTP side of this server. For its own: an application cannot be mounted twice."""
    # The SDK's own choice is one that FastAPI warns of.
    app.router.default_response_class = JSONResponse
    app.include_router(create_page_router())
    app.include_router(_health_router(lifecycle))
    for create in (create_router, create_responses_router, create_messages_router, create_embeddings_router):
        router = create(lifecycle.models)
        for prefix in ("/openai/v1", "/v1"):
            app.include_router(router, prefix=prefix)
    app.include_router(create_score_router(lifecycle.models))
    for prefix in ("", "/v2"):
        app.include_router(create_rerank_router(lifecycle.models), prefix=prefix)
    app.include_router(create_tokenize_router(lifecycle.models))
    app.include_router(create_generate_router(lifecycle.models))
    app.include_router(create_infer_router(dataplane))
    app.include_router(create_status_router(dataplane))
    app.include_router(create_index_router(repository))
    app.add_api_route("/metrics", metrics_handler, methods=["GET"], tags=["metrics"], **_METRICS)
    register_v1_endpoints(app, dataplane, repository)
    register_v2_endpoints(app, dataplane, repository)
    document_with(app, lifecycle.models, has_keys=bool(options.api_keys))
    for kind, status in _OF_THE_SDK.items():
        app.add_exception_handler(kind, _teller(status))
    app.add_exception_handler(ModelNotFound, _tell_of_model)
    app.add_exception_handler(HTTPException, _tell_of_route)
    app.add_exception_handler(octavo.OctavoError, _tell)
    app.add_exception_handler(Exception, _tell)
    # The last one added is the first to see a request.
    limits = {"max_body_bytes": options.max_body_bytes, "max_header_bytes": options.max_header_bytes}
    app.add_middleware(ConnectionGuard, **limits)
    app.add_middleware(KeyCheck, keys=ApiKeys(options.api_keys))


def _health_router(lifecycle: Lifecycle) -> APIRouter:
    """What the SDK has no route for, or one that tells too little."""
    router = APIRouter(tags=["health"])

    @router.get("/", **_LIVE)
    async def root() -> Response:
        live = lifecycle.is_live()
        return JSONResponse({"status": "alive" if live else "dead"}, 200 if live else 503)

    @router.get("/health", **_READY)
    async def health() -> Response:
        return Response(status_code=200 if lifecycle.is_ready() else 503)

    @router.get("/v1/models/{name:path}", **_MODEL_READY)
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


async def _tell_of_model(request: Request, error: Exception) -> Response:
    """The SDK's word for what UnknownModel is here."""
    names = request.path_params
    return error_response(request.url.path, UnknownModel(names.get("name") or names.get("model_name", "")))


async def _tell_of_route(request: Request, error: Exception) -> Response:
    """What the router refuses by itself."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    if allowed is None:
        return error_response(request.url.path, NoSuchRoute(request.url.path))
    response = error_response(request.url.path, NoSuchMethod(request.method, allowed))
    response.headers["Allow"] = allowed
    return response


async def _tell(request: Request, error: Exception) -> Response:
    # What is not ours is a bug: the server logs it, after this.
    return error_response(request.url.path, error)
