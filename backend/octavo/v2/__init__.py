"""The wire of KServe's v2 protocol as both hosts speak it: tensors by name in, tensors by name out.

Pure functions on plain values: knows no server, no stream and no thread. For hosts; the contract is the vLLM backend's.
"""

from octavo.v2.embed_request import EmbedRequest
from octavo.v2.encoders import Encoder, Request, open_encoder
from octavo.v2.request_codec import ModelFacts, RawRequest, decode_request
from octavo.v2.tensors import INPUTS, OUTPUTS, Array, TensorSpec

__all__ = [
    "INPUTS",
    "OUTPUTS",
    "Array",
    "EmbedRequest",
    "Encoder",
    "ModelFacts",
    "RawRequest",
    "Request",
    "TensorSpec",
    "decode_request",
    "open_encoder",
]
