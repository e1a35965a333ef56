"""JSON schemas of real programs on the embedded model: every document that it writes is valid.

The schemas are those of the data classes of the `openai` package: nested, recursive, with unions and literals.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai.types
import openai.types.chat
import pydantic
import pytest

from octavo import LLM, InvalidRequest, RequestOutput, SamplingParams

Schema = dict[str, Any]
NUM_TOKENS = 160
TEMPERATURES = (0.0, 1.0)


def schemas_of(package: Any) -> list[Schema]:
    """The schemas of all data classes that a package's modules define, each once."""
    found: dict[str, Schema] = {}
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        for cls in vars(importlib.import_module(info.name)).values():
            if inspect.isclass(cls) and issubclass(cls, pydantic.BaseModel) and cls.__module__ == info.name:
                schema = closed(cls.model_json_schema())
                found.setdefault(json.dumps(schema), schema)
    return list(found.values())


def closed(schema: Any) -> Any:
    """A schema without properties that it does not name, as strict modes want it: a small model would add for ever."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: False if key == "additionalProperties" and part is True else closed(part) for key, part in schema.items()
    }


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    made = LLM(max_num_seqs=32, max_model_len=1024)
    yield made
    made.engine.shutdown()


def written(llm: LLM, schemas: list[Schema], temperature: float) -> list[RequestOutput]:
    # Against strings that repeat themselves for ever.
    shared = {"temperature": temperature, "frequency_penalty": 0.5, "max_tokens": NUM_TOKENS}
    params = [
        SamplingParams.from_mapping({**shared, "seed": number, "guided_json": schema})
        for number, schema in enumerate(schemas)
    ]
    return llm.generate(["A short JSON document: "] * len(schemas), params, use_tqdm=False)


def num_valid(llm: LLM, schemas: list[Schema], temperature: float) -> int:
    """How many documents came to their end; each of them is valid."""
    num_ended = 0
    for schema, output in zip(schemas, written(llm, schemas, temperature), strict=True):
        completion = output.outputs[0]
        assert str(completion.finish_reason) in ("stop", "length"), output.error
        if str(completion.finish_reason) == "stop":
            jsonschema.validate(json.loads(completion.text), schema)
            num_ended += 1
    return num_ended


@pytest.mark.slow
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_documents_follow_their_schemas(llm: LLM, temperature: float) -> None:
    schemas = [schema for schema in schemas_of(openai.types.chat) if len(json.dumps(schema)) < 1000]
    assert num_valid(llm, schemas[:24], temperature) >= 12


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_two_hundred_documents_follow_their_schemas(llm: LLM, temperature: float) -> None:
    schemas = schemas_of(openai.types)
    assert num_valid(llm, schemas[:: len(schemas) // 300], temperature) >= 200


def test_an_unsupported_keyword_is_refused_before_anything_is_written(llm: LLM) -> None:
    with pytest.raises(InvalidRequest) as caught:
        written(llm, [{"type": "string"}, {"type": "array", "uniqueItems": True}], 0.0)
    assert str(caught.value).startswith("guided_json: ")
    assert str(caught.value).endswith("without these keywords, which are not supported: uniqueItems")
    assert not llm.engine.scheduler.running
