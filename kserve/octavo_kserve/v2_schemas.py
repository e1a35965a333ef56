"""JSON schemas of the v2 protocol's routes, the generate extension and v1 predict: the tables of tensors in JSON.

For readers and tools only. Knows no route.
"""

from __future__ import annotations

from typing import Any

from octavo.v2 import INPUTS, OUTPUTS, TensorSpec
from octavo_kserve.calls import JSON_INPUTS, MOST_INSTANCES, datatype
from octavo_kserve.described import Schema, array, integer, nullable, record, ref
from octavo_kserve.sampling_schemas import INT64_MAX, INT64_MIN, sampling_schemas

_TEXT: Schema = {"type": "string"}
_TYPES = {"STRING": "string", "BOOL": "boolean", "FP32": "number", "UINT32": "integer"}
# It is there for clients of other models, and refused.
_REFUSED = {"image"}
_PARAMETERS = nullable(
    type="object", additionalProperties={"type": ["string", "integer", "number", "boolean"]}
)  # fmt: skip


def _kind(spec: TensorSpec) -> str:
    return spec.data_type.removeprefix("TYPE_")


def _input(spec: TensorSpec) -> Schema:
    if spec.name in JSON_INPUTS:
        return {"type": ["string", "object", "array", "null"]}
    return nullable(type=_TYPES[_kind(spec)])


def _output(spec: TensorSpec) -> Schema:
    one = {"type": _TYPES[_kind(spec)]}
    return {"anyOf": [one, {"type": "array", "items": one}]}


_ASKED: dict[str, Schema] = {
    **{spec.name: _input(spec) for spec in INPUTS if spec.name not in _REFUSED},
    **sampling_schemas(),
    "request_priority": integer(INT64_MIN, INT64_MAX),
    "cache_salt": nullable(type="string"),
    "timeout": integer(0, INT64_MAX) | {"description": "Microseconds."},
    "id": {"type": ["string", "integer"]},
    "parameters": nullable(type="object"),
}
_SAMPLED: dict[str, Any] = {"max_tokens": 16, "temperature": 0.7, "seed": 1}
_EXAMPLE = {"text_input": "The sea", **_SAMPLED}
# All but the text come when they are asked for.
_OUTPUTS = record({spec.name: _output(spec) for spec in OUTPUTS}, {spec.name for spec in OUTPUTS} - {"text_output"})
_METADATA = array(
    **record({"name": _TEXT, "datatype": _TEXT, "shape": {"type": "array", "items": {"type": "integer"}}})
)
_MODEL = {"model_name": _TEXT, "model_version": _TEXT}
_SHAPE: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}


def _tensor(name: Schema, **more: Schema) -> Schema:
    kinds: Schema = {"enum": sorted({datatype(spec) for spec in (*INPUTS, *OUTPUTS)})}
    shaped = {"name": name, "shape": _SHAPE, "datatype": kinds, "parameters": _PARAMETERS}
    return record(shaped | more, ["parameters", "data"])


_INPUT = _tensor(
    {"enum": [spec.name for spec in INPUTS if spec.name not in _REFUSED]}, data={"type": "array"}
) | {"required": ["name", "shape", "datatype", "data"]}  # fmt: skip
_OUTPUT_NAME: Schema = {"enum": [spec.name for spec in OUTPUTS]}
_INFER = {
    "id": nullable(type="string"),
    "parameters": _PARAMETERS,
    "inputs": {"type": "array", "items": _INPUT, "maxItems": len(INPUTS)},
    "outputs": nullable(
        type="array", items=record({"name": _OUTPUT_NAME, "parameters": _PARAMETERS}, ["parameters"])
    ),
}  # fmt: skip
_INSTANCES: Schema = {
    "type": "array",
    "minItems": 1,
    "maxItems": MOST_INSTANCES,
    "items": {"anyOf": [_TEXT, ref("GenerateRequest")]},
}
_TENSOR = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": ["The sea"]}

V2: dict[str, Schema] = {
    "ModelMetadata": record(
        {"name": _TEXT, "platform": _TEXT, "versions": array(**_TEXT), "inputs": _METADATA, "outputs": _METADATA},
        ["versions"],
    ),
    "ModelReady": record({"name": _TEXT, "ready": {"const": True}}),
    "GenerateRequest": record(_ASKED, _ASKED, examples=[_EXAMPLE, {"messages": [{"role": "user", "content": "Hello"}]}])
    | {"anyOf": [{"required": [name]} for name in ("text_input", "messages", "embedding_request")]},
    "Generated": {"allOf": [record(_MODEL), _OUTPUTS]},
    "GeneratedEvent": {"anyOf": [ref("Generated"), ref("ErrorText")]},
    "InferRequest": record(_INFER, set(_INFER) - {"inputs"}, examples=[{"inputs": [_TENSOR], "parameters": _SAMPLED}]),
    "Inferred": record(
        _MODEL
        | {
            "id": _TEXT,
            "parameters": _PARAMETERS,
            "outputs": {"type": "array", "items": _tensor(_OUTPUT_NAME, data={"type": "array"})},
        },
        ["id", "parameters"],
    ),
    "PredictRequest": record(
        {"instances": _INSTANCES},
        examples=[{"instances": ["The sea", _EXAMPLE]}],
    ),
    "Predictions": record({"predictions": {"type": "array", "items": _OUTPUTS}}),
    "ErrorText": record({"error": _TEXT}),
}
