"""Who may ask: API keys, on every route but health and the files of the page. Knows no model and no SDK."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

import octavo
from octavo_kserve.errors import Unauthorized
from octavo_kserve.replies import error_response

KEYS_VARIABLE = "OCTAVO_API_KEYS"
_HEALTH = r"/|/health|/v2/health/(live|ready)|/v2/models/[^/]+(/versions/[^/]+)?/ready"
# A browser sends no key when it opens a page: the page asks for one, and sends it where it asks for data.
_PAGE = r"/ui(/[^/]*)?"
OPEN_PATHS = re.compile(f"{_HEALTH}|{_PAGE}")
_SCHEME = "bearer "


class ApiKeys:
    """The keys that open this server; with none of them, it is open. Holds digests only."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = [_digest(key) for key in keys]

    def allow(self, authorization: str | None) -> bool:
        """Whether the value of an Authorization header opens it.

        Takes the same time whichever key is right and however much of one: every digest is compared to its end.
        """
        if not self._digests:
            return True
        shown = authorization or ""
        key = shown[len(_SCHEME) :].strip() if shown[: len(_SCHEME)].lower() == _SCHEME else ""
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return bool(key) and any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(file: str | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys in `file` and in the environment, between spaces, commas or line ends.

    Raises InvalidRequest where either is given without a key: a server that was meant to be closed must not be open.
    """
    texts = {KEYS_VARIABLE: environment.get(KEYS_VARIABLE)}
    if file is not None:
        try:
            # An editor may have put a byte order mark before the first key.
            texts["api_key_file"] = Path(file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise octavo.InvalidRequest("api_key_file", file, f"a text file that can be read ({error})") from None
    keys = []
    for source, text in texts.items():
        found = [] if text is None else text.replace(",", " ").split()
        if text is not None and not found:
            raise octavo.InvalidRequest(source, text, "at least one key")
        keys += found
    return tuple(keys)


def _shown(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str | None, str | None]:
    """What the Authorization header shows, and the one in which clients of Anthropic's API have a key.

    Either may open: in front of a server, the first may be that of a proxy.
    """
    found = {name: value.decode("latin-1") for name, value in reversed(list(headers))}
    key = found.get(b"x-api-key")
    return found.get(b"authorization"), None if key is None else _SCHEME + key


class KeyCheck:
    """ASGI middleware that refuses requests without a key before anything of them is read."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401."""
        if scope["type"] == "http" and not OPEN_PATHS.fullmatch(scope["path"]):
            opens = [self._keys.allow(shown) for shown in _shown(scope["headers"])]
            if not any(opens):
                await error_response(scope["path"], Unauthorized())(scope, receive, send)
                return
        elif scope["type"] == "websocket":
            # There is no such route; refusing here keeps that true for routes of others.
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)
