"""The OpenAI routes behind a real HTTP server, over an engine process with the fake executor, with real clients."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from host_kserve.openai_server import CONTEXT, START_TIMEOUT_S, clients, serve, start_engine

from octavo import AsyncEngine
from octavo_kserve.served_model import Models, ServedModel

MESSAGES: Any = [{"role": "user", "content": "hello"}]

pytestmark = pytest.mark.slow


def wait_until(reached: Callable[[], bool]) -> None:
    until, never = time.monotonic() + START_TIMEOUT_S, threading.Event()
    while not reached():
        assert time.monotonic() < until
        never.wait(0.005)


def events(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


def test_a_streamed_chat_says_the_same_as_a_plain_one(client: openai.OpenAI) -> None:
    asked: Any = {"model": "fake", "messages": MESSAGES, "seed": 3, "max_tokens": 30}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in parts)
    assert text == whole.choices[0].message.content and len(text) == 30
    assert [chunk.choices[0].finish_reason for chunk in parts if chunk.choices[0].finish_reason] == ["length"]
    assert last.choices == [] and last.usage is not None and whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens == 30
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens == len("user: hello\na: ")
    assert {chunk.id for chunk in chunks} != {whole.id} and len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in parts)


def test_every_kind_of_prompt_and_every_choice_streams_to_its_plain_text(client: openai.OpenAI) -> None:
    for prompt in ("hello", ["hello", "there"], [104, 105], [[104, 105], [106]]):
        asked: Any = {
            "model": "fake",
            "prompt": prompt,
            "seed": 5,
            "max_tokens": 12,
            "n": 2,
            "echo": True,
            "logprobs": 0,
        }
        whole = client.completions.create(**asked)
        texts = {choice.index: "" for choice in whole.choices}
        offsets: dict[int, list[int]] = {choice.index: [] for choice in whole.choices}
        ends: list[int] = []
        for chunk in client.completions.create(**asked, stream=True):
            (choice,) = chunk.choices
            texts[choice.index] += choice.text
            offsets[choice.index] += (choice.logprobs and choice.logprobs.text_offset) or []
            ends += [choice.index] if choice.finish_reason else []
        assert texts == {choice.index: choice.text for choice in whole.choices}
        assert offsets == {choice.index: list(range(len(choice.text))) for choice in whole.choices}
        assert sorted(ends) == [choice.index for choice in whole.choices] == list(range(len(texts)))


def test_prompts_as_text_and_as_tokens_are_the_same(client: openai.OpenAI) -> None:
    asked: Any = {"model": "fake", "seed": 1, "max_tokens": 8}
    texts = [client.completions.create(prompt=p, **asked).choices[0].text for p in ("hi", [104, 105], ["hi"])]
    assert len(set(texts)) == 1


def test_a_repeated_prompt_comes_from_the_cache_unless_its_salt_is_another(client: openai.OpenAI) -> None:
    def num_cached(salt: str) -> int:
        done = client.completions.create(
            model="fake", prompt="again " * 50, max_tokens=1, extra_body={"cache_salt": salt}
        )
        assert done.usage is not None and done.usage.prompt_tokens_details is not None
        return done.usage.prompt_tokens_details.cached_tokens or 0

    assert [num_cached(salt) > 0 for salt in ("one", "one", "two")] == [False, True, False]


def test_a_stop_string_ends_the_text_and_is_named(client: openai.OpenAI) -> None:
    asked: Any = {"model": "fake", "prompt": "stop", "seed": 1, "max_tokens": 40}
    text = client.completions.create(**asked).choices[0].text
    for stream in (False, True):
        done = client.completions.create(**asked, stop=text[10:12], stream=stream)
        choices = [chunk.choices[0] for chunk in done] if stream else [done.choices[0]]  # type: ignore[union-attr]
        assert "".join(choice.text for choice in choices) == text[: text.index(text[10:12])]
        (end,) = [choice for choice in choices if choice.finish_reason]
        assert (end.finish_reason, end.to_dict()["stop_reason"]) == ("stop", text[10:12])


def test_the_asynchronous_client_gets_many_streams_at_once(address: str) -> None:
    async def stream(client: openai.AsyncOpenAI, i: int) -> int:
        chunks = await client.chat.completions.create(
            model="fake", messages=[{"role": "user", "content": f"{i}"}], max_tokens=40, stream=True
        )
        return sum([len(chunk.choices[0].delta.content or "") async for chunk in chunks])

    async def run() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(stream(client, i) for i in range(16)))

    assert asyncio.run(run()) == [40] * 16


def test_a_stream_is_events_up_to_done(plain: httpx2.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "x", "max_tokens": 5, "stream": True, "stream_options": options}
    reply = plain.post("/v1/completions", json=body)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = events(reply.text)
    assert done == "[DONE]"
    counts = [json.loads(chunk)["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-2:] == [5, 5]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {}, 400, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
         "messages[0].content[0].type"),
        ("/v1/chat/completions", {"messages": MESSAGES, "top_logprobs": 2}, 422, "top_logprobs"),
        ("/v1/completions", {"prompt": "x", "temperature": 3}, 400, "temperature"),
        ("/v1/completions", {"prompt": "x", "stream": True, "n": 0}, 400, "n"),
        ("/v1/completions", {"prompt": "x", "seed": 2**64}, 422, "seed"),
        ("/v1/completions", {"prompt": ["x", ""]}, 400, "prompt[1]"),
        ("/v1/completions", {"prompt": [99_999], "echo": True}, 400, "prompt[0]"),
        ("/v1/completions", {"prompt": [1] * CONTEXT, "stream": True}, 400, None),
        ("/v1/completions", {"prompt": "x", "model": "nope"}, 404, "model"),
        ("/v1/completions", {"prompt": "x", "deadline_s": -1}, 400, "deadline_s"),
        ("/tokenize", {"prompt": "x", "model": "nope"}, 404, "model"),
        ("/detokenize", {"tokens": [1 << 40]}, 400, "tokens[0]"),
    ],
)  # fmt: skip
def test_a_bad_request_gets_a_status_and_an_error_object(
    plain: httpx2.Client, path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    reply = plain.post(path, json=body)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["param"] == param
    assert ("detail" in reply.json()) == (status in (400, 422) and param is not None)


def test_the_official_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="nope", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="fake", messages=MESSAGES, temperature=9)
    with pytest.raises(openai.UnprocessableEntityError):
        client.chat.completions.create(model="fake", messages=MESSAGES, stream_options={"include_usage": True})


def test_a_deadline_is_a_status_before_the_first_token_and_an_event_after_it(
    client: openai.OpenAI, plain: httpx2.Client
) -> None:
    endless = {"prompt": "x", "max_tokens": 40_000, "deadline_s": 0.3}
    assert plain.post("/v1/completions", json=endless).status_code == 408
    assert plain.post("/v1/completions", json=endless | {"stream": True, "deadline_s": 0.001}).status_code == 408
    reply = plain.post("/v1/completions", json=endless | {"stream": True})
    *chunks, error, done = events(reply.text)
    assert reply.status_code == 200 and chunks and done == "[DONE]"
    assert json.loads(error)["error"]["code"] == "deadline_exceeded"
    with pytest.raises(openai.APIError, match="timeout expired"):
        list(client.completions.create(model="fake", prompt="x", max_tokens=40_000, stream=True, extra_body=endless))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["x", ["x", "y", "z"]])
def test_a_client_that_leaves_ends_its_request_at_once(
    engine: AsyncEngine, address: str, stream: bool, prompt: Any
) -> None:
    body = json.dumps({"prompt": prompt, "max_tokens": 40_000, "stream": stream}).encode()
    url = httpx2.URL(address)
    with socket.create_connection((url.host, url.port)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        num_prompts = 1 if prompt == "x" else 3
        wait_until(lambda: engine.stats().num_requests_running == num_prompts)
        if stream:
            assert connection.recv(12) == b"HTTP/1.1 200"
    wait_until(lambda: engine.stats().num_requests_running == 0)


def test_models_answer_in_the_words_of_both_protocols(client: openai.OpenAI, plain: httpx2.Client) -> None:
    assert [model.id for model in client.models.list()] == ["org/fake", "fake"]
    assert plain.get("/v1/models").json()["models"] == ["org/fake", "fake"]
    card = plain.get("/v1/models/org/fake").json()
    assert (card["id"], card["name"], card["ready"], card["max_model_len"]) == ("org/fake", "org/fake", True, CONTEXT)
    assert client.models.retrieve("fake").to_dict()["root"] == "org/fake"
    assert plain.get("/v1/models/nope").status_code == 404


def test_text_and_chats_become_tokens_and_text_again(plain: httpx2.Client) -> None:
    reply = plain.post("/tokenize", json={"prompt": "héy", "return_token_strs": True}).json()
    assert (reply["count"], reply["tokens"], reply["max_model_len"]) == (4, list("héy".encode()), CONTEXT)
    assert len(reply["token_strs"]) == 4
    assert plain.post("/detokenize", json={"tokens": reply["tokens"]}).json() == {"prompt": "héy"}
    chat = plain.post("/tokenize", json={"messages": MESSAGES}).json()
    assert bytes(chat["tokens"]) == b"user: hello\na: " and chat["token_strs"] is None
    short = plain.post("/tokenize", json={"messages": MESSAGES, "add_generation_prompt": False}).json()
    assert bytes(short["tokens"]) == b"user: hello\n"
    assert plain.post("/tokenize", json={"prompt": "a", "add_special_tokens": False}).json()["tokens"] == [97]
    assert plain.post("/tokenize", json={"messages": MESSAGES, "add_special_tokens": True}).status_code == 400


def test_a_chat_may_go_on_inside_its_last_message(plain: httpx2.Client) -> None:
    said = [*MESSAGES, {"role": "assistant", "content": "well, "}]
    asked = {"messages": said, "continue_final_message": True}
    assert bytes(plain.post("/tokenize", json=asked).json()["tokens"]) == b"user: hello\nassistant: well, "
    sampling = {"seed": 1, "max_tokens": 8}
    (choice,) = plain.post("/v1/chat/completions", json={**asked, **sampling, "echo": True}).json()["choices"]
    prompt = "user: hello\nassistant: well, "
    (plainly,) = plain.post("/v1/completions", json={"prompt": prompt, **sampling}).json()["choices"]
    assert choice["message"]["content"] == "well, " + plainly["text"]


def test_a_chat_may_be_sent_without_a_content_type(plain: httpx2.Client) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": 1}).encode()
    assert plain.post("/v1/chat/completions", content=body).status_code == 200


def test_an_id_may_be_used_again_also_at_the_same_time(plain: httpx2.Client, client: openai.OpenAI) -> None:
    asked: Any = {"model": "fake", "prompt": "x", "max_tokens": 40_000, "extra_body": {"request_id": "1"}}
    with client.completions.create(**asked, stream=True) as stream:
        next(iter(stream))
        reply = plain.post("/v1/completions", json={"prompt": "x", "max_tokens": 1, "request_id": "1"})
    assert (reply.status_code, reply.json()["id"]) == (200, "cmpl-1")


def test_a_full_queue_and_an_engine_that_is_gone_have_their_own_statuses(tmp_path: Path) -> None:
    engine = start_engine(tmp_path, max_num_seqs=1, max_waiting=1)
    models = Models()
    models.add(ServedModel("fake", engine, 1))
    with serve(models) as address, clients(address) as (_, plain):
        crowd = plain.post("/v1/completions", json={"prompt": ["x"] * 5, "max_tokens": 40_000})
        assert crowd.status_code == 429 and int(crowd.headers["retry-after"]) >= 1
        wait_until(lambda: engine.stats().num_requests_running == engine.stats().num_requests_waiting == 0)
        with plain.stream("POST", "/v1/completions", json={"prompt": "x", "max_tokens": 40_000, "stream": True}) as cut:
            lines = cut.iter_lines()
            next(lines)
            engine.shutdown(drain_s=0)
            *_, error, done = [line for line in lines if line]
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "service_unavailable"
        assert done == "data: [DONE]"
        assert plain.post("/v1/completions", json={"prompt": "x"}).status_code == 503
        assert plain.get("/v1/models/fake").status_code == 503
        assert plain.get("/v1/models").json()["data"][0]["ready"] is False


LOOK_UP: Any = {
    "type": "object",
    "properties": {"letter": {"enum": ["a", "b"]}},
    "required": ["letter"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": LOOK_UP, "strict": True}} for name in ("f", "g")
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "g"}}])
def test_a_forced_call_is_the_same_whole_and_streamed(client: openai.OpenAI, choice: Any) -> None:
    asked: Any = {"model": "fake", "messages": MESSAGES, "seed": 4, "tools": TOOLS, "tool_choice": choice}
    asked |= {"parallel_tool_calls": False, "max_tokens": 500}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    found = []
    for choice_made in (whole, streamed):
        (call,) = choice_made.message.tool_calls or ()
        assert choice_made.finish_reason == "tool_calls" and call.id and call.type == "function"
        found.append((call.function.name, json.loads(call.function.arguments)))
    assert found[0] == found[1] and (choice == "required" or found[0][0] == "g")
    assert found[0][1] in ({"letter": "a"}, {"letter": "b"})


def test_a_call_and_its_result_are_sent_back(client: openai.OpenAI) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"letter": "a"}'}}
    result = {"role": "tool", "tool_call_id": "1", "content": "alpha"}
    said: Any = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}, result]
    done = client.chat.completions.create(model="fake", messages=said, tools=TOOLS, seed=1, max_tokens=5)
    assert done.choices[0].message.content and done.choices[0].message.tool_calls is None


def test_a_schema_that_cannot_be_followed_is_refused(plain: httpx2.Client) -> None:
    bad = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}]
    body = {"messages": MESSAGES, "tools": bad, "tool_choice": "required"}
    reply = plain.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tools[0].function.parameters")
