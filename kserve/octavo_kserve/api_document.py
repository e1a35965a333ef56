"""The server's OpenAPI document: FastAPI's, without routes that are never reached, with the models that are served.

What the routes of this host say of themselves is theirs; what the SDK's leave out is here. Knows no value of a body.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import RouteContext, iter_route_contexts

from octavo_kserve.access import OPEN_PATHS
from octavo_kserve.anthropic.schemas import ANTHROPIC_SCHEMAS
from octavo_kserve.described import answers, array, described, error, record, ref
from octavo_kserve.embeddings.schemas import EMBEDDING_SCHEMAS
from octavo_kserve.openai.answers import ANSWERS
from octavo_kserve.openai.schemas import BODIES
from octavo_kserve.replies import is_anthropic, is_kserve
from octavo_kserve.responses.schemas import RESPONSE_SCHEMAS
from octavo_kserve.served_model import Models
from octavo_kserve.v2_schemas import V2

_TAGS = {
    "OpenAI": "The API of OpenAI, also under /openai.",
    "Anthropic": "The Messages API of Anthropic, also under /openai.",
    "embeddings": "Vectors, of models that make them.",
    "tokens": "Texts to tokens and back, without running the model.",
    "generate": "The Triton server's generate extension.",
    "V2": "The open inference protocol.",
    "repository": "Which models there are, and loading and unloading them.",
    "V1": "KServe's first protocol.",
    "health": "For probes; they need no key.",
    "metrics": "For Prometheus.",
}
_ABOUT = "Members of a body that are not named here are allowed, and ignored."
_HTTP_VERBS = frozenset({"get", "post", "put", "delete", "patch"})
_GENERATES = (400, 404, 408, 413, 429, 500, 503)
_LOADS = (400, 404, 503)
_TRUE = {"type": "boolean", "const": True}
_STATE = {"name": {"type": "string"}}
_SCHEMAS = {
    **BODIES,
    **ANSWERS,
    **RESPONSE_SCHEMAS,
    **ANTHROPIC_SCHEMAS,
    **EMBEDDING_SCHEMAS,
    **V2,
    "IndexRequest": record({"ready": {"type": "boolean"}}, ["ready"], examples=[{"ready": True}]),
    "Index": array(**record({"name": {"type": "string"}, "state": {"type": "string"}})),
    "Status": record({"status": {"enum": ["alive", "dead"]}}),
    "Loaded": record({**_STATE, "load": _TRUE}),
    "Unloaded": record({**_STATE, "unload": _TRUE}),
}
# What routes do that do not say it themselves, most of them the SDK's.
_SAID_HERE: dict[tuple[str, str], dict[str, Any]] = {
    ("post", "/v1/models/{}:predict"): described(
        "Predict", answers("Predictions"), "PredictRequest", errors=_GENERATES
    ),
    ("get", "/v2"): described("Describe the server", answers("ServerMetadataResponse")),
    ("get", "/v2/models"): described("List the models", answers("ListModelsResponse")),
    ("get", "/v2/health/live"): described("Is it alive?", answers("ServerLiveResponse"), errors=[503]),
    ("get", "/v2/health/ready"): described("Is it ready?", answers("ServerReadyResponse"), errors=[503]),
    ("post", "/v2/repository/index"): described("List what can be loaded", answers("Index"), "IndexRequest", [400]),
    ("post", "/v2/repository/models/{}/load"): described("Load a model", answers("Loaded"), errors=_LOADS),
    ("post", "/v2/repository/models/{}/unload"): described("Unload a model", answers("Unloaded"), errors=_LOADS),
}
_NOT_SERVED = {("post", "/v1/models/{}:explain"), ("get", "/v2/models/{}/versions/{}/ready")}


def document_with(app: FastAPI, models: Models, has_keys: bool) -> None:
    """Has `app` show this document, made anew when other models are served."""

    @lru_cache(maxsize=1)
    def document(names: tuple[str, ...]) -> dict[str, Any]:
        return _document(app, names, has_keys)

    app.openapi = lambda: document(tuple(name for model in models.all() for name in model.names))  # type: ignore[method-assign]


def _document(app: FastAPI, names: tuple[str, ...], has_keys: bool) -> dict[str, Any]:
    found = get_openapi(
        title="Octavo",
        version=metadata.version("octavo"),
        description=_ABOUT,
        routes=list(_reached(app)),
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
    )
    schemas = found.setdefault("components", {}).setdefault("schemas", {})
    schemas |= deepcopy(_SCHEMAS) | {"ModelName": {"type": "string"} | ({"enum": list(names)} if names else {})}
    for name in ("ValidationError", "HTTPValidationError"):
        schemas.pop(name, None)
    if len(names) > 1:
        _name_models(schemas, names[0])
    for path, method, operation in _operations(found):
        _complete(path, method, operation)
        if has_keys:
            _lock(path, operation)
    if has_keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return found


def _reached(app: FastAPI) -> Iterator[RouteContext]:
    """Of two routes for one path, only the first is ever asked."""
    seen = set(_NOT_SERVED)
    for route in iter_route_contexts(app.routes):
        keys = {(verb.lower(), _pattern(route.path_format or "")) for verb in route.methods or ()}
        if getattr(route, "include_in_schema", False) and not keys <= seen:
            seen |= keys
            yield route


def _pattern(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in _HTTP_VERBS:
                yield path, method, operation


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    """What FastAPI knows nothing of: what the SDK's routes do, and that a name in a path is a model's."""
    known = _SAID_HERE.get((method, _pattern(path)))
    if known is not None:
        operation["responses"] = {str(status): response for status, response in known["responses"].items()}
        operation |= {"summary": known["summary"], "description": f"{known['summary']}."}
        operation |= known.get("openapi_extra", {})
    # Its own check of a path's words, which takes all of them.
    if "HTTPValidationError" in str(operation["responses"].get("422")):
        del operation["responses"]["422"]
    if path.startswith("/v2/repository"):
        # There, the names of others are of use too.
        operation["tags"] = ["repository"]
        return
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = ref("ModelName")


def _lock(path: str, operation: dict[str, Any]) -> None:
    if OPEN_PATHS.fullmatch(path):
        return
    operation["security"] = [{"key": []}]
    style = "ErrorText" if is_kserve(path) else "Error"
    style = "AnthropicError" if is_anthropic(path) else style
    operation["responses"]["401"] = error(401, style)


def _name_models(schemas: dict[str, Any], name: str) -> None:
    """Where several are served, a request says which it means."""
    for schema in schemas.values():
        if "model" in schema.get("properties", ()):
            for example in schema.get("examples", ()):
                example["model"] = name
