"""The v2 protocol over gRPC: the SDK's servicer, on the address and behind the keys that this server was given.

Knows no tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
from grpc import StatusCode, aio
from kserve.errors import InvalidInput, ModelNotFound, ModelNotReady
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as service
from kserve.protocol.grpc.servicer import InferenceServicer

import octavo
from octavo_kserve.access import ApiKeys
from octavo_kserve.errors import Unauthorized, error_reply

logger = logging.getLogger(__name__)

_HEALTH = frozenset({"ServerLive", "ServerReady", "ModelReady"})
_CODES = {
    401: StatusCode.UNAUTHENTICATED,
    404: StatusCode.NOT_FOUND,
    408: StatusCode.DEADLINE_EXCEEDED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    500: StatusCode.INTERNAL,
    503: StatusCode.UNAVAILABLE,
}
_OF_THE_SDK = {
    InvalidInput: StatusCode.INVALID_ARGUMENT,
    ModelNotFound: StatusCode.NOT_FOUND,
    ModelNotReady: StatusCode.UNAVAILABLE,
    NotImplementedError: StatusCode.UNIMPLEMENTED,
}

Continue = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class GrpcServer:
    """One server; `start` returns when it has ended, `stop` ends it."""

    def __init__(
        self,
        address: str,
        servicer: InferenceServicer,
        keys: ApiKeys,
        max_message_bytes: tuple[int, int],
        credentials: grpc.ServerCredentials | None,
    ) -> None:
        """Messages may have so many bytes sent, and received. Without `credentials` the connection is not encrypted.

        Raises RuntimeError when nothing can listen on `address`.
        """
        limits = zip(("send", "receive"), max_message_bytes, strict=True)
        options = [(f"grpc.max_{way}_message_length", limit) for way, limit in limits]
        self._server = aio.server(interceptors=(_Guard(keys),), options=options)
        service.add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        if credentials is None:
            self._server.add_insecure_port(address)
        else:
            self._server.add_secure_port(address, credentials)
        self._address = address

    async def start(self) -> None:
        """Serves until it is stopped."""
        await self._server.start()
        logger.info("gRPC on %s", self._address)
        await self._server.wait_for_termination()

    async def stop(self, grace_s: float) -> None:
        """Takes no more requests, and lets those that run end, for `grace_s` seconds at most."""
        await self._server.stop(grace_s)


def tls_credentials(certificate: str | None, key: str | None) -> grpc.ServerCredentials | None:
    """What the two PEM files hold, by which HTTP is encrypted as well; None without them."""
    if not (certificate and key):
        return None
    return grpc.ssl_server_credentials([(Path(key).read_bytes(), Path(certificate).read_bytes())])


class _Guard(aio.ServerInterceptor):
    """Asks for the key, and tells a client what went wrong with the code that goes with it."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def intercept_service(self, continuation: Continue, details: grpc.HandlerCallDetails) -> Any:
        """Wraps the handler of one call; all of the service are unary."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        is_health = details.method.rpartition("/")[2] in _HEALTH
        shown = dict(details.invocation_metadata).get("authorization")
        allowed = is_health or self._keys.allow(shown if isinstance(shown, str) else None)

        async def call(request: Any, context: Any) -> Any:
            try:
                if not allowed:
                    raise Unauthorized
                return await handler.unary_unary(request, context)
            except Exception as error:
                await context.abort(*_status(error))

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


def _status(error: Exception) -> tuple[StatusCode, str]:
    code = _OF_THE_SDK.get(type(error))
    if code is not None:
        return code, str(error)
    if not isinstance(error, octavo.OctavoError):
        logger.error("a gRPC request failed inside the server", exc_info=error)
    reply = error_reply(error)
    return _CODES.get(reply.status, StatusCode.INVALID_ARGUMENT), reply.text
