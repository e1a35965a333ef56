"""The OpenAPI document says what the code does: its tables are held to the parsers and readers themselves."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator

import octavo
from octavo.v2 import ModelFacts
from octavo_kserve.anthropic import create_messages_router
from octavo_kserve.anthropic import request as anthropic_request
from octavo_kserve.anthropic.schemas import ANTHROPIC_SCHEMAS
from octavo_kserve.api_document import document_with
from octavo_kserve.calls import raw_request, read_call
from octavo_kserve.embeddings import create_embeddings_router
from octavo_kserve.embeddings import request as embeddings_request
from octavo_kserve.embeddings.schemas import EMBEDDING_SCHEMAS
from octavo_kserve.generate import create_generate_router
from octavo_kserve.openai import create_router, create_tokenize_router
from octavo_kserve.openai.chat_request import NOT_SUPPORTED, read_chat
from octavo_kserve.openai.completion_request import read_completion
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.request import WITHOUT_EFFECT
from octavo_kserve.openai.schemas import BODIES
from octavo_kserve.responses import create_responses_router
from octavo_kserve.responses import request as responses_request
from octavo_kserve.responses.schemas import RESPONSE_SCHEMAS
from octavo_kserve.sampling_schemas import BOUNDS, sampling_schemas
from octavo_kserve.served_model import Models, ServedModel

READERS: dict[str, Any] = {
    "ChatRequest": read_chat,
    "CompletionRequest": read_completion,
    "ResponseRequest": lambda fields, models: responses_request.read_response(fields, models).generate,
    "AnthropicRequest": anthropic_request.read_message,
    "EmbeddingRequest": lambda fields, models: embeddings_request.read_embedding(fields, models).pooling,
    "ScoreRequest": lambda fields, models: embeddings_request.read_score(fields, models).pooling,
    "RerankRequest": lambda fields, models: embeddings_request.read_rerank(fields, models).scores.pooling,
}
SCHEMAS = BODIES | RESPONSE_SCHEMAS | ANTHROPIC_SCHEMAS | EMBEDDING_SCHEMAS
# Read by a route, and not told: they have no effect, ask for what is refused, or have another name there.
_IDLE = {*WITHOUT_EFFECT, "stream_options", "return_token_ids", "n", "max_tokens", "logprobs", "prompt_logprobs"}
UNTOLD = {
    "ChatRequest": {*WITHOUT_EFFECT, *NOT_SUPPORTED, "modalities"},
    "CompletionRequest": {*WITHOUT_EFFECT, "suffix", "prompt_embeds"},
    "ResponseRequest": {*_IDLE, *responses_request.REFUSED, *responses_request.WITHOUT_EFFECT},
    "AnthropicRequest": {*_IDLE, *anthropic_request.REFUSED, *anthropic_request.WITHOUT_EFFECT, "stop"},
    **{kind: {*_IDLE, "stream"} for kind in EMBEDDING_SCHEMAS},
}


def models(*names: str) -> Models:
    """Of an engine, nothing here asks more than whether it is ready, and how its model reads and writes."""
    found = Models()
    model = {"chat_format": octavo.ChatFormat(None, None), "scores_pairs": False}
    for name in names:
        engine = SimpleNamespace(wait_ready=lambda timeout_s: None, **model)
        found.add(ServedModel(name, engine, 1, (f"{name}-alias",)))  # type: ignore[arg-type]
    return found


def document(served: Models, has_keys: bool = False) -> dict[str, Any]:
    app = FastAPI()
    for create in (create_router, create_responses_router, create_messages_router, create_embeddings_router):
        app.include_router(create(served), prefix="/v1")
    app.include_router(create_tokenize_router(served))
    app.include_router(create_generate_router(served))
    document_with(app, served, has_keys)
    return json.loads(json.dumps(app.openapi()))  # type: ignore[no-any-return]


def accepts(name: str, value: object) -> bool:
    """Whether the parameter's own parser takes the value."""
    try:
        octavo.SamplingParams.from_mapping({name: value}, **({} if name == "max_tokens" else {"max_tokens": None}))
    except octavo.InvalidRequest:
        return False
    return True


def test_every_sampling_parameter_is_there_with_its_default() -> None:
    found = sampling_schemas()
    assert list(found) == [field.name for field in fields(octavo.SamplingParams)]
    defaults = octavo.SamplingParams()
    assert all(schema["default"] == getattr(defaults, name) for name, schema in found.items() if "default" in schema)


@pytest.mark.parametrize("name", BOUNDS)
def test_what_is_said_of_a_sampling_parameters_bounds_is_what_its_parser_does(name: str) -> None:
    whole, bounds = "integer" in sampling_schemas()[name]["type"], BOUNDS[name]
    for key, inwards in (("minimum", 1), ("maximum", -1), ("exclusiveMinimum", 1)):
        if key in bounds:
            edge = bounds[key]
            inside = edge + inwards if whole else math.nextafter(edge, inwards * math.inf)
            outside = edge - inwards if whole else math.nextafter(edge, -inwards * math.inf)
            assert accepts(name, inside) and not accepts(name, outside)
            assert accepts(name, edge) is (key != "exclusiveMinimum")


class Asked(Fields):
    """Remembers which fields were asked for."""

    def __init__(self, values: dict[str, Any], within: str = "") -> None:
        super().__init__(values, within)
        self.names: set[str] = set()

    def get(self, name: str) -> Any:
        self.names.add(name)
        return super().get(name)


@pytest.mark.parametrize("kind", READERS)
def test_a_body_is_said_to_have_the_fields_that_are_read(kind: str) -> None:
    (example, *_) = SCHEMAS[kind]["examples"]
    asked = Asked(dict(example))
    READERS[kind](asked, models("m"))
    said = set(SCHEMAS[kind]["properties"])
    assert said <= asked.names
    sampling = {field.name for field in fields(octavo.SamplingParams)}
    assert asked.names - said <= UNTOLD[kind] | (octavo.SamplingParams.parameter_names() - sampling)


def test_examples_are_requests_and_fit_their_schemas() -> None:
    schemas = document(models("m"))["components"]["schemas"]
    for name, schema in schemas.items():
        for example in schema.get("examples", ()):
            Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}).validate(
                example
            )
    for kind, read in READERS.items():
        for example in schemas[kind]["examples"]:
            assert read(Fields(example), models("m")).prompts
    for example in schemas["GenerateRequest"]["examples"]:
        assert read_call(raw_request(example), ModelFacts("m", decoupled=True), streams=False).prompt


def test_the_models_are_those_that_are_served_when_it_is_asked_for() -> None:
    served = models("a")
    app = FastAPI()
    app.include_router(create_generate_router(served))
    document_with(app, served, has_keys=False)
    assert app.openapi()["components"]["schemas"]["ModelName"]["enum"] == ["a", "a-alias"]
    served.add(ServedModel("b", SimpleNamespace(), 1))  # type: ignore[arg-type]
    assert app.openapi()["components"]["schemas"]["ModelName"]["enum"] == ["a", "a-alias", "b"]
    served.remove("a")
    served.remove("b")
    assert "enum" not in app.openapi()["components"]["schemas"]["ModelName"]


def test_with_keys_all_routes_but_probes_say_that_they_want_one() -> None:
    unlocked, locked = document(models("m")), document(models("m"), has_keys=True)
    assert "securitySchemes" not in unlocked["components"]
    assert locked["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, methods in locked["paths"].items():
        for method, operation in methods.items():
            assert operation["security"] == [{"key": []}]
            assert "401" in operation["responses"] and "401" not in unlocked["paths"][path][method]["responses"]


def test_every_name_that_is_referred_to_is_there() -> None:
    found = document(models("m"))
    text = json.dumps(found)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(found["components"]["schemas"])
