"""The routes that generate on the embedded model, through the official clients: the same text on every way to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import jsonschema
import openai
import pytest
from host_kserve.openai_server import clients, serve

from octavo import LLM, AsyncEngine, EngineConfig, SamplingParams
from octavo_kserve.served_model import Models, ServedModel

MODEL = "smollm2"
PROMPTS = ["The capital of France is", "Once upon a time, in a small village by the sea,"]
MESSAGES: Any = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "Who wrote Hamlet? 🦊"},
]
SEEDED: dict[str, Any] = {"seed": 11, "temperature": 0.9, "top_p": 0.95, "max_tokens": 24}
WEATHER: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS: dict[str, Any] = {
    "model": MODEL,
    "temperature": 0,
    "max_tokens": 128,
    "tools": [
        {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER, "strict": True}},
        {"type": "function", "function": {"name": "get_time", "parameters": WEATHER, "strict": True}},
    ],
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    engine = AsyncEngine(EngineConfig())
    models = Models()
    models.add(ServedModel(MODEL, engine, 1_700_000_000))
    engine.wait_ready(120)
    with serve(models) as address:
        yield address
    engine.shutdown(drain_s=0)


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with clients(address) as (client, _):
        yield client


@pytest.fixture(scope="module")
def plain(address: str) -> Iterator[httpx2.Client]:
    with clients(address) as (_, plain):
        yield plain


@pytest.fixture(scope="module")
def claude(address: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address, api_key="none") as claude:
        yield claude


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def test_seeded_texts_are_those_of_llm(client: openai.OpenAI, llm: LLM) -> None:
    params = SamplingParams(**SEEDED, n=2)
    offline = [output.text for result in llm.generate(PROMPTS, params, use_tqdm=False) for output in result.outputs]
    whole = client.completions.create(model=MODEL, prompt=PROMPTS, n=2, **SEEDED)
    assert [choice.text for choice in whole.choices] == offline
    texts = [""] * 4
    for chunk in client.completions.create(model=MODEL, prompt=PROMPTS, n=2, stream=True, **SEEDED):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == offline


def test_a_chat_is_that_of_llm_plain_and_streamed_with_exact_counts(client: openai.OpenAI, llm: LLM) -> None:
    (offline,) = llm.chat(MESSAGES, SamplingParams(**SEEDED), use_tqdm=False)
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, **SEEDED)
    assert whole.choices[0].message.content == offline.outputs[0].text
    *parts, last = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **SEEDED
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in parts) == offline.outputs[0].text
    ends = [chunk.choices[0].finish_reason for chunk in parts if chunk.choices[0].finish_reason]
    assert ends == [whole.choices[0].finish_reason] == [offline.outputs[0].finish_reason]
    assert whole.usage is not None and last.usage is not None
    for usage in (whole.usage, last.usage):
        assert usage.prompt_tokens == len(offline.prompt_token_ids)
        assert usage.completion_tokens == len(offline.outputs[0].token_ids)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert last.usage.prompt_tokens_details is not None and last.usage.prompt_tokens_details.cached_tokens


def test_a_conversation_goes_on_and_uses_what_is_cached(client: openai.OpenAI) -> None:
    messages = list(MESSAGES)
    cached = []
    for question in ("And when?", "And where?"):
        done = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=24, temperature=0)
        messages += [
            {"role": "assistant", "content": done.choices[0].message.content},
            {"role": "user", "content": question},
        ]
        assert done.usage is not None and done.usage.prompt_tokens_details is not None
        cached.append(done.usage.prompt_tokens_details.cached_tokens or 0)
    assert cached[1] > 0


def test_chat_logprobs_spell_the_text_and_rank_the_best_first(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=12, temperature=0, logprobs=True, top_logprobs=3
    )
    (choice,) = done.choices
    assert choice.logprobs is not None and choice.logprobs.content
    content = choice.logprobs.content
    assert "".join(token.token for token in content) == choice.message.content
    for token in content:
        logprobs = [top.logprob for top in token.top_logprobs]
        assert len(logprobs) == 3 and logprobs == sorted(logprobs, reverse=True)
        assert token.top_logprobs[0].token == token.token and token.top_logprobs[0].logprob == token.logprob
        assert token.bytes is None or bytes(token.bytes).decode() == token.token


def test_an_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI, plain: httpx2.Client) -> None:
    prompt = PROMPTS[0]
    (choice,) = client.completions.create(
        model=MODEL, prompt=prompt, echo=True, logprobs=2, max_tokens=2, temperature=0
    ).choices
    assert choice.logprobs is not None and choice.logprobs.tokens and choice.logprobs.token_logprobs
    token_ids = plain.post("/tokenize", json={"prompt": prompt}).json()["tokens"]
    assert choice.text.startswith(prompt)
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])
    assert len(choice.logprobs.tokens) == len(token_ids) + 2


def test_tokens_go_there_and_back(plain: httpx2.Client) -> None:
    tokens = plain.post("/tokenize", json={"messages": MESSAGES}).json()["tokens"]
    text = plain.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert text.startswith("<|im_start|>system\nYou answer") and text.endswith("<|im_start|>assistant\n")
    (choice,) = plain.post("/v1/completions", json={"prompt": tokens, **SEEDED}).json()["choices"]
    chat = plain.post("/v1/chat/completions", json={"messages": MESSAGES, **SEEDED}).json()["choices"][0]
    assert choice["text"] == chat["message"]["content"]


def test_the_asynchronous_client_gets_the_same_from_many_streams_at_once(client: openai.OpenAI, address: str) -> None:
    def asked(i: int) -> dict[str, Any]:
        return {"model": MODEL, "prompt": f"Item {i}:", **SEEDED, "max_tokens": 12}

    async def stream(client: openai.AsyncOpenAI, i: int) -> str:
        chunks = await client.completions.create(**asked(i), stream=True)
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            return await asyncio.gather(*(stream(client, i) for i in range(8)))

    assert asyncio.run(run()) == [client.completions.create(**asked(i)).choices[0].text for i in range(8)]


@pytest.mark.parametrize("stream", [False, True])
def test_the_asynchronous_client_gets_texts_ends_and_counts_of_the_other_one(
    client: openai.OpenAI, address: str, stream: bool
) -> None:
    chat: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, **SEEDED}
    completion: dict[str, Any] = {"model": MODEL, "prompt": PROMPTS[0], **SEEDED}
    more: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}

    async def run() -> list[list[Any]]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            answers = [await client.chat.completions.create(**chat, **more)]
            answers.append(await client.completions.create(**completion, **more))
            return [[chunk async for chunk in answer] if stream else [answer] for answer in answers]

    plain = [client.chat.completions.create(**chat), client.completions.create(**completion)]
    for whole, chunks in zip(plain, asyncio.run(run()), strict=True):
        choices = [choice for chunk in chunks for choice in chunk.choices]
        assert "".join(map(text_of, choices)) == text_of(whole.choices[0]) != ""
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == [whole.choices[0].finish_reason]
        (usage,) = [chunk.usage for chunk in chunks if chunk.usage]
        counts = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
        assert counts == (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens)


def test_the_clients_loop_of_tool_calls_goes_round(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    named = {"type": "function", "function": {"name": "get_weather"}}
    done = client.chat.completions.create(messages=messages, tool_choice=named, **TOOLS)  # type: ignore[call-overload]
    (call,) = done.choices[0].message.tool_calls
    assert (done.choices[0].finish_reason, call.function.name) == ("tool_calls", "get_weather")
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    messages += [
        done.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "It is 18 degrees and sunny."},
    ]
    answer = client.chat.completions.create(messages=messages, tool_choice="none", **TOOLS).choices[0]
    assert answer.message.content and not answer.message.tool_calls


def test_streamed_calls_put_together_by_the_client_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"messages": MESSAGES, "tool_choice": "required", "parallel_tool_calls": False, **TOOLS}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    (one,), (other,) = whole.message.tool_calls, streamed.message.tool_calls or ()
    assert (one.function.name, one.function.arguments) == (other.function.name, other.function.arguments)
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"


def test_responses_and_messages_say_what_a_chat_does_whole_and_streamed(
    client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    (system, user), asked = MESSAGES, {"temperature": 0.9, "top_p": 0.95, "model": MODEL, "extra_body": {"seed": 11}}
    said = client.chat.completions.create(messages=MESSAGES, max_tokens=24, **asked)
    response: Any = {"input": user["content"], "instructions": system["content"], "max_output_tokens": 24, **asked}
    message: Any = {"messages": [user], "system": system["content"], "max_tokens": 24, "model": MODEL}
    message["extra_body"] = {"seed": 11, "temperature": 0.9, "top_p": 0.95}
    events = client.responses.create(**response, stream=True)
    with claude.messages.stream(**message) as stream:
        texts = [stream.get_final_text(), claude.messages.create(**message).content[0].text]  # type: ignore[union-attr]
    texts.append(client.responses.create(**response).output_text)
    texts.append("".join(event.delta for event in events if event.type == "response.output_text.delta"))
    assert texts == [said.choices[0].message.content] * 4
    counted = claude.messages.count_tokens(messages=[user], system=system["content"], model=MODEL)
    assert said.usage is not None and counted.input_tokens == said.usage.prompt_tokens


def test_the_loop_of_tool_calls_goes_round_in_every_protocol(
    client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    asked: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    result = "It is 18 degrees and sunny."
    tools: Any = [{"type": "function", "name": "get_weather", "parameters": WEATHER, "strict": True}]
    given: Any = {"model": MODEL, "tools": tools, "temperature": 0, "max_output_tokens": 128}
    with client.responses.stream(input=asked, tool_choice="required", parallel_tool_calls=False, **given) as stream:
        output = stream.get_final_response().output
    (call,) = output
    assert call.type == "function_call"
    jsonschema.validate(json.loads(call.arguments), WEATHER)
    back = {"type": "function_call_output", "call_id": call.call_id, "output": result}
    answer = client.responses.create(input=[*asked, *output, back], tool_choice="none", **given)
    assert answer.output_text and {item.type for item in answer.output} == {"message"}
    given = {"model": MODEL, "tools": [{"name": "get_weather", "input_schema": WEATHER}], "max_tokens": 128}
    given["extra_body"] = {"temperature": 0}
    one: Any = {"type": "tool", "name": "get_weather"}
    with claude.messages.stream(messages=asked, tool_choice=one, **given) as events:
        message = events.get_final_message()
    (use,) = message.content
    assert use.type == "tool_use" and use.input == json.loads(call.arguments)
    found: Any = {"type": "tool_result", "tool_use_id": use.id, "content": result}
    turns = [*asked, message.to_param(), {"role": "user", "content": [found]}]
    (block,) = claude.messages.create(messages=turns, tool_choice={"type": "none"}, **given).content
    assert block.type == "text" and block.text == answer.output_text


def test_a_conversation_goes_on_behind_a_call_that_was_cut_off(
    client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    asked: list[Any] = [{"role": "user", "content": "What is the weather in Rome?"}]
    done = client.chat.completions.create(messages=asked, tool_choice="required", **TOOLS | {"max_tokens": 40})
    (cut,) = done.choices[0].message.tool_calls
    assert done.choices[0].finish_reason == "length"
    with pytest.raises(ValueError, match="line 1"):
        json.loads(cut.function.arguments)
    said = done.choices[0].message.model_dump(exclude_none=True)
    back = {"role": "tool", "tool_call_id": cut.id, "content": [{"type": "text", "text": "It is sunny."}]}
    answer = client.chat.completions.create(messages=[*asked, said, back], tool_choice="none", **TOOLS)

    given: Any = {"model": MODEL, "tools": [{"type": "function", **tool["function"]} for tool in TOOLS["tools"]]}
    given |= {"temperature": 0, "max_output_tokens": 128}
    output = client.responses.create(input=asked, tool_choice="required", **given | {"max_output_tokens": 40}).output
    (item,) = output
    assert item.type == "function_call"
    assert (item.arguments, item.status) == (cut.function.arguments, "incomplete")
    result = {"type": "function_call_output", "call_id": item.call_id, "output": "It is sunny."}
    response = client.responses.create(input=[*asked, *output, result], tool_choice="none", **given)

    tools = [{"name": tool["function"]["name"], "input_schema": WEATHER} for tool in TOOLS["tools"]]
    given = {"model": MODEL, "tools": tools, "extra_body": {"temperature": 0}}
    message = claude.messages.create(messages=asked, tool_choice={"type": "any"}, max_tokens=40, **given)
    (use,) = message.content
    assert use.type == "tool_use" and list(use.input.values()) == [cut.function.arguments]
    found: Any = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "It is sunny."}]}
    turns = [*asked, message.to_param(), {"role": "user", "content": [found]}]
    last = claude.messages.create(messages=turns, tool_choice={"type": "none"}, max_tokens=128, **given)
    said_by_all = {answer.choices[0].message.content, response.output_text, last.content[0].text}  # type: ignore[union-attr]
    assert len(said_by_all) == 1 and said_by_all != {""}


@pytest.mark.parametrize("kind", [None, "auto", "none", "any", "tool"])
def test_the_tokens_that_are_counted_are_those_of_the_answers_prompt(
    claude: anthropic.Anthropic, kind: str | None
) -> None:
    asked: Any = {"model": MODEL, "messages": MESSAGES[1:], "system": [{"type": "text", "text": "Be brief."}]}
    if kind is not None:
        asked |= {"tools": [{"name": "get_weather", "input_schema": WEATHER}], "tool_choice": {"type": kind}}
    if kind == "tool":
        asked["tool_choice"]["name"] = "get_weather"
    usage = claude.messages.create(**asked, max_tokens=1).usage
    counted = claude.messages.count_tokens(**asked).input_tokens
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def text_of(choice: Any) -> str:
    """What a choice says, whole or in part, of a chat or a completion."""
    if hasattr(choice, "text"):
        return str(choice.text)
    return (choice.delta if hasattr(choice, "delta") else choice.message).content or ""
