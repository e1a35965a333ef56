"""An error as an HTTP answer, in the shape that clients of the path expect. Knows the paths' families, no route."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from octavo_kserve.errors import error_reply

_KSERVE_VERBS = (":predict", ":explain")


def error_response(path: str, error: BaseException) -> JSONResponse:
    """`{"error": text}` where clients of KServe ask, else the object of the OpenAI API."""
    reply = error_reply(error)
    of_kserve = path.startswith("/v2") or path.endswith(_KSERVE_VERBS)
    body = {"error": reply.text} if of_kserve else reply.body
    return JSONResponse(body, reply.status, reply.headers)
