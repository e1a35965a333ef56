"""/responses and /messages behind a real HTTP server, over an engine with the fake executor, with real clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx2
import openai
import pytest
from host_kserve.test_openai_routes import LOOK_UP, MESSAGES

pytestmark = pytest.mark.slow

SAMPLED: dict[str, Any] = {"seed": 3, "model": "fake"}
ENDLESS = {"deadline_s": 0.3, "model": "fake"}


@pytest.fixture(scope="module")
def claude(address: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address, api_key="none", max_retries=0, timeout=60) as claude:
        yield claude


def say(plain: httpx2.Client, **more: Any) -> str:
    """What the chat route answers."""
    body = {"messages": MESSAGES, **SAMPLED, "max_tokens": 30, **more}
    return str(plain.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])


def test_a_response_says_what_a_chat_does_whole_and_streamed(client: openai.OpenAI, plain: httpx2.Client) -> None:
    asked: Any = {"input": "hello", "max_output_tokens": 30, "model": "fake", "extra_body": {"seed": 3}}
    whole = client.responses.create(**asked)
    events = list(client.responses.create(**asked, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == say(plain) and len(text) == 30
    assert (whole.status, events[-1].type) == ("incomplete", "response.incomplete")
    last: Any = events[-1]
    for usage in (whole.usage, last.response.usage):
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens) == (len("user: hello\na: "), 30)


def test_a_message_says_what_a_chat_does_whole_and_streamed(claude: anthropic.Anthropic, plain: httpx2.Client) -> None:
    asked: Any = {"messages": MESSAGES, "max_tokens": 30, "model": "fake", "extra_body": {"seed": 3}}
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        (block,) = message.content
        assert block.type == "text" and block.text == say(plain)
        assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 30)
    stopped = claude.messages.create(**asked, stop_sequences=[say(plain)[10:12]])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", say(plain)[10:12])


@pytest.mark.parametrize("kind", [None, "auto", "none", "any", "tool"])
def test_a_prompts_tokens_are_those_of_its_answer(claude: anthropic.Anthropic, kind: str | None) -> None:
    asked: Any = {"messages": MESSAGES, "model": "fake", "system": "Be brief."}
    if kind is not None:
        asked |= {"tools": [{"name": "f", "input_schema": LOOK_UP}], "tool_choice": {"type": kind}}
    if kind == "tool":
        asked["tool_choice"]["name"] = "f"
    usage = claude.messages.create(**asked, max_tokens=1).usage
    counted = claude.messages.count_tokens(**asked).input_tokens
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert counted == len("system: Be brief.\nuser: hello\na: ")


def test_a_forced_call_of_a_response_is_the_same_whole_and_streamed(client: openai.OpenAI) -> None:
    tools = [{"type": "function", "name": name, "parameters": LOOK_UP, "strict": True} for name in "fg"]
    choice = {"type": "function", "name": "g"}
    asked: Any = {"model": "fake", "input": "hello", "tools": tools, "tool_choice": choice, "extra_body": {"seed": 4}}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        streamed = stream.get_final_response()
    found = []
    for response in (whole, streamed):
        (call,) = response.output
        assert call.type == "function_call" and call.name == "g" and call.call_id and response.status == "completed"
        found.append(json.loads(call.arguments))
    assert found[0] == found[1] and found[0] in ({"letter": "a"}, {"letter": "b"})
    said = [{"role": "user", "content": "hello"}, *whole.output]
    said += [{"type": "function_call_output", "call_id": whole.output[0].call_id, "output": "alpha"}]  # type: ignore[union-attr]
    assert client.responses.create(model="fake", input=said, tools=tools, max_output_tokens=5).output_text  # type: ignore[arg-type]


def test_a_forced_call_of_a_message_is_the_same_whole_and_streamed(claude: anthropic.Anthropic) -> None:
    tools = [{"name": name, "input_schema": LOOK_UP} for name in "fg"]
    choice = {"type": "any", "disable_parallel_tool_use": True}
    asked: Any = {"model": "fake", "tools": tools, "tool_choice": choice, "max_tokens": 500, "extra_body": {"seed": 4}}
    whole = claude.messages.create(messages=MESSAGES, **asked)
    with claude.messages.stream(messages=MESSAGES, **asked) as stream:
        streamed = stream.get_final_message()
    found = []
    for message in (whole, streamed):
        (call,) = message.content
        assert call.type == "tool_use" and call.id and message.stop_reason == "tool_use"
        found.append((call.name, call.input))
    assert found[0] == found[1] and found[0][1] in ({"letter": "a"}, {"letter": "b"})
    (call,) = whole.content
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "alpha"}  # type: ignore[union-attr]
    said: Any = [*MESSAGES, whole.to_param(), {"role": "user", "content": [result]}]
    asked |= {"tool_choice": {"type": "none"}, "max_tokens": 5}
    assert [block.type for block in claude.messages.create(messages=said, **asked).content] == ["text"]


def test_an_answer_that_has_begun_is_gone_on_with(claude: anthropic.Anthropic, plain: httpx2.Client) -> None:
    said: Any = [*MESSAGES, {"role": "assistant", "content": "well, "}]
    found = claude.messages.create(messages=said, model="fake", max_tokens=8, extra_body={"seed": 3}).content[0]
    assert found.type == "text" and found.text == say(plain, messages=said, continue_final_message=True, max_tokens=8)


def test_a_schema_is_followed_on_both(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    text: Any = {"format": {"type": "json_schema", "name": "answer", "schema": LOOK_UP, "strict": True}}
    response = client.responses.create(model="fake", input="hello", text=text)
    config: Any = {"format": {"type": "json_schema", "schema": LOOK_UP}}
    message = claude.messages.create(model="fake", messages=MESSAGES, max_tokens=500, output_config=config)
    for answer in (response.output_text, message.content[0].text):  # type: ignore[union-attr]
        assert json.loads(answer) in ({"letter": "a"}, {"letter": "b"})


def test_logprobs_of_a_response_spell_its_text(client: openai.OpenAI) -> None:
    asked: Any = {"model": "fake", "input": "hello", "max_output_tokens": 6, "top_logprobs": 2}
    response: Any = client.responses.create(**asked, include=["message.output_text.logprobs"])
    (part,) = response.output[0].content
    assert "".join(token.token for token in part.logprobs) == part.text
    assert all(token.top_logprobs for token in part.logprobs)


def test_each_client_raises_its_own_errors(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id") as refused:
        client.responses.create(model="fake", input="x", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="nope", input="x")
    for body in ({"temperature": 9}, {"tool_choice": {"type": "any"}}, {"stop_sequences": 5}):
        with pytest.raises(anthropic.BadRequestError) as wrong:
            claude.messages.create(model="fake", messages=MESSAGES, max_tokens=5, extra_body=body)
        error: Any = wrong.value.body
        assert error["error"]["type"] == "invalid_request_error" and next(iter(body)) in error["error"]["message"]
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.count_tokens(model="nope", messages=MESSAGES)


def test_what_the_template_or_the_engine_refuses_is_named_as_the_client_wrote_it(plain: httpx2.Client) -> None:
    bad = {"type": "json_schema", "schema": {"type": "object", "not": {}}}
    reply = plain.post("/v1/responses", json={"input": "x", "text": {"format": bad}})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "text.format.schema")
    reply = plain.post("/v1/messages", json={"messages": MESSAGES, "max_tokens": 5, "output_config": {"format": bad}})
    assert reply.json()["error"]["message"].startswith("output_config.format.schema: ")


def test_anthropics_own_loop_of_tools_goes_round_without_a_server_that_remembers(claude: anthropic.Anthropic) -> None:
    letters = list[str]()

    @anthropic.beta_tool
    def look_up(letter: Literal["a", "b"]) -> str:
        """Looks a letter up."""
        letters.append(letter)
        return "alpha"

    loop = claude.beta.messages.tool_runner(
        model="fake", max_tokens=500, messages=MESSAGES, tools=[look_up], max_iterations=2,
        tool_choice={"type": "any", "disable_parallel_tool_use": True}, extra_body={"seed": 4},
    )  # fmt: skip
    first, second = loop
    assert first.stop_reason == second.stop_reason == "tool_use" and len(letters) == 2


def test_a_tool_that_cannot_be_forced_is_named_as_the_client_wrote_it(plain: httpx2.Client) -> None:
    schemas = {"f": LOOK_UP, "g": {"type": "object", "not": {}}}
    functions = [{"name": name, "parameters": schema} for name, schema in schemas.items()]
    routes: dict[str, tuple[str, Any, list[Any]]] = {
        "chat/completions": (
            "function.parameters",
            "required",
            [{"type": "function", "function": each} for each in functions],
        ),
        "responses": ("parameters", "required", [{"type": "function", **each} for each in functions]),
        "messages": (
            "input_schema",
            {"type": "any"},
            [{"name": name, "input_schema": schema} for name, schema in schemas.items()],
        ),
    }
    for path, (name, choice, tools) in routes.items():
        asked = {"input": "x"} if path == "responses" else {"messages": MESSAGES, "max_tokens": 5}
        reply = plain.post(f"/v1/{path}", json={**asked, "tool_choice": choice, "tools": tools})
        said = f"tools[1].{name}: 'g' is not allowed; expected a JSON schema without these keywords"
        assert reply.status_code == 400 and reply.json()["error"]["message"].startswith(said)


def test_a_deadline_ends_a_stream_with_the_protocols_own_event(
    client: openai.OpenAI, claude: anthropic.Anthropic, plain: httpx2.Client
) -> None:
    asked: Any = {"model": "fake", "input": "x", "extra_body": ENDLESS}
    *_, last = client.responses.create(**asked, stream=True)
    assert last.type == "response.failed" and last.response.error is not None
    assert "timeout expired" in last.response.error.message
    with pytest.raises(anthropic.APIError, match="timeout_error"):
        list(
            claude.messages.create(model="fake", messages=MESSAGES, max_tokens=40_000, extra_body=ENDLESS, stream=True)
        )
    body = {"messages": MESSAGES, "max_tokens": 40_000, "deadline_s": 0.001}
    assert plain.post("/v1/messages", json=body).json()["error"]["type"] == "timeout_error"


def test_events_have_names_and_the_last_one_says_that_it_is(plain: httpx2.Client) -> None:
    response, message = {"input": "hello", "max_output_tokens": 3}, {"messages": MESSAGES, "max_tokens": 3}
    for path, asked, last in (
        ("/v1/responses", response, "response.incomplete"),
        ("/v1/messages", message, "message_stop"),
    ):
        reply = plain.post(path, json={**asked, "stream": True})
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        found = [event.split("\n") for event in reply.text.split("\n\n") if event]
        for name, data in found:
            assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
        assert found[-1][0] == f"event: {last}"
