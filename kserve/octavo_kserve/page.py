"""The page for people: `/ui`, its files, and `/` for whoever asks for HTML.

Knows no model and no state of the server: the page itself asks the other routes, with a key where they want one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

_FOLDER = Path(__file__).parent / "ui"
_PAGE = "index.html"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, no text that becomes markup, and in nobody's frame.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Files are asked for each time, and mostly found to be the same: no page has scripts of two versions.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of the page. `tag` changes with its content."""

    body: bytes
    kind: str
    tag: str


def read_assets() -> dict[str, Asset]:
    """The page's files by name."""
    files = {path.name: path for path in sorted(_FOLDER.iterdir()) if path.suffix in _KINDS}
    return {name: _asset(path.read_bytes(), _KINDS[path.suffix]) for name, path in files.items()}


def _asset(body: bytes, kind: str) -> Asset:
    return Asset(body, kind, f'"{hashlib.sha256(body).hexdigest()[:16]}"')


def prefers_html(accept: str) -> bool:
    """Whether an Accept header names HTML, and likes JSON no better. `*/*`, as probes and curl send it, does not."""
    qualities: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, *parameters = (word.strip() for word in part.split(";"))
        qualities[kind] = next((_quality(word[2:]) for word in parameters if word.startswith("q=")), 1.0)
    html = qualities.get("text/html", 0.0)
    return html > 0 and html >= qualities.get("application/json", 0.0)


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


class _ForPeople(APIRoute):
    """A route that is there for requests that prefer HTML only: all others go on to the next one of its path."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
        return super().matches(scope) if prefers_html(accept) else (Match.NONE, {})


def create_page_router() -> APIRouter:
    """To be included before the router that answers probes at `/`."""
    assets = read_assets()
    router = APIRouter(include_in_schema=False)

    async def get_page(request: Request) -> Response:
        """The page."""
        return _respond(request, assets[_PAGE])

    async def get_asset(request: Request, name: str) -> Response:
        """One of its files."""
        return _respond(request, assets[name]) if name in assets else Response(status_code=404)

    methods = ["GET", "HEAD"]
    router.add_api_route("/", get_page, methods=methods, route_class_override=_ForPeople)
    router.add_api_route("/ui", get_page, methods=methods)
    router.add_api_route("/ui/{name}", get_asset, methods=methods)
    return router


def _respond(request: Request, asset: Asset) -> Response:
    headers = _HEADERS | {"ETag": asset.tag, "Content-Type": asset.kind}
    if request.url.path == "/":
        headers["Vary"] = "Accept"
    if request.headers.get("If-None-Match") == asset.tag:
        return Response(status_code=304, headers=headers)
    return Response(asset.body, headers=headers)
