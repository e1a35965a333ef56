"""The loop of tool calls over the Triton server's routes: a forced call comes as JSON, its result goes back."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import triton_ways as ways
from triton_ways import Call

from octavo_triton.launch import TritonServer

pytestmark = pytest.mark.slow

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TIME = {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather now", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "get_time", "parameters": TIME | {"additionalProperties": False}}},
]
QUESTION = {"role": "user", "content": "What is the weather in Rome?"}


def call_of(*functions: dict[str, Any]) -> str:
    """What makes an answer a call of one of these: the response format that docs/triton.md describes."""
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": function["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return json.dumps(
        {"type": "json_schema", "json_schema": {"schema": calls[0] if len(calls) == 1 else {"anyOf": calls}}}
    )


def asked(messages: list[dict[str, Any]], **inputs: str | bool) -> Call:
    given: dict[str, str | bool] = {
        "text_input": "",
        "exclude_input_in_output": True,
        "messages": json.dumps(messages),
        "tools": json.dumps(TOOLS),
        "sampling_parameters": '{"temperature": 0, "max_tokens": 100}',
        "return_finish_reason": True,
    }
    return Call("smollm2", given | inputs)


@pytest.mark.parametrize(
    ("way", "inputs"),
    [
        (ways.over_generate, {}),
        (ways.over_generate_stream, {"stream": True}),
        (ways.over_grpc_stream, {"stream": True}),
    ],
)
def test_a_forced_call_comes_as_json_and_its_result_goes_back(
    triton_server: TritonServer, way: Any, inputs: dict[str, bool]
) -> None:
    forced = asked([QUESTION], response_format=call_of(TOOLS[0]["function"]), **inputs)
    found = ways.whole(way(triton_server, forced))
    assert found["finish_reason"] == ["stop"]
    function = json.loads(found["text_output"][0])
    assert function.keys() == {"name", "arguments"} and function["name"] == "get_weather"
    jsonschema.validate(function["arguments"], WEATHER)
    history = [
        QUESTION,
        {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "It is 18 degrees and sunny."},
    ]
    answer = ways.whole(way(triton_server, asked(history, **inputs)))
    assert answer["text_output"][0]


def test_one_of_several_tools_can_be_forced(triton_server: TritonServer) -> None:
    functions = [tool["function"] for tool in TOOLS]
    (found,) = ways.over_generate(triton_server, asked([QUESTION], response_format=call_of(*functions)))
    function = json.loads(found["text_output"][0])
    (schema,) = [known["parameters"] for known in functions if known["name"] == function["name"]]
    jsonschema.validate(function["arguments"], schema)
