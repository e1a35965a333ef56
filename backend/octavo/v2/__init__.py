"""The wire of KServe's v2 protocol as both hosts speak it: tensors by name in, tensors by name out.

Pure functions on plain values: knows no server, no stream and no thread. For hosts; the contract is the vLLM backend's.
"""

from octavo.v2.request_codec import GenerateRequest, ModelFacts, RawRequest, decode_request
from octavo.v2.response_codec import ResponseEncoder
from octavo.v2.tensors import INPUTS, OUTPUTS, Array, TensorSpec

__all__ = [
    "INPUTS",
    "OUTPUTS",
    "Array",
    "GenerateRequest",
    "ModelFacts",
    "RawRequest",
    "ResponseEncoder",
    "TensorSpec",
    "decode_request",
]
