"""Which encoder writes the responses of which request. Knows no tensor."""

from __future__ import annotations

from octavo.v2.embed_request import EmbedRequest
from octavo.v2.embed_response import EmbedEncoder
from octavo.v2.request_codec import GenerateRequest
from octavo.v2.response_codec import ResponseEncoder

Request = GenerateRequest | EmbedRequest
Encoder = ResponseEncoder | EmbedEncoder


def open_encoder(request: Request) -> Encoder:
    """The one that writes the responses of `request`."""
    return EmbedEncoder(request) if isinstance(request, EmbedRequest) else ResponseEncoder(request)
