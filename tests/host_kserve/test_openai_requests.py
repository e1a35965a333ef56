"""Bodies of the OpenAI API to requests for the engine: what is read, what is refused, and by which name."""

from __future__ import annotations

import contextlib
import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import octavo
from octavo.text.tool_formats import HERMES
from octavo_kserve.errors import UnknownModel, Unprocessable
from octavo_kserve.openai.chat_request import read_chat
from octavo_kserve.openai.completion_request import MOST_PROMPTS, read_completion
from octavo_kserve.openai.fields import Fields
from octavo_kserve.openai.request import GenerateRequest, Streaming
from octavo_kserve.openai.schemas import BODIES
from octavo_kserve.served_model import Models, ServedModel

MESSAGES = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
READERS = {"chat": read_chat, "completion": read_completion}


NO_SPECIAL_TOKENS = SimpleNamespace(special_token_id=lambda text: None)


def models(*names: str, chat_format: octavo.ChatFormat | None = None) -> Models:
    """Reading asks of an engine only whether it has been loaded, and how its model writes messages."""
    found = Models()
    engine = SimpleNamespace(
        wait_ready=lambda timeout_s: None,
        chat_format=chat_format or octavo.ChatFormat(HERMES, None),
        tokenizer=NO_SPECIAL_TOKENS,
    )
    for name in names:
        found.add(ServedModel(name, engine, 1, (f"{name}-alias",)))  # type: ignore[arg-type]
    return found


def fields_of(**body: Any) -> Fields:
    return Fields.of_body(json.dumps(body).encode())


def chat(chat_format: octavo.ChatFormat | None = None, **body: Any) -> GenerateRequest:
    return read_chat(fields_of(**{"model": "m", "messages": MESSAGES} | body), models("m", chat_format=chat_format))


def completion(**body: Any) -> GenerateRequest:
    return read_completion(fields_of(**{"model": "m", "prompt": "hello"} | body), models("m"))


def refusal(reader: str, **body: Any) -> octavo.InvalidRequest:
    with pytest.raises(octavo.InvalidRequest) as caught:
        (chat if reader == "chat" else completion)(**body)
    return caught.value


@pytest.mark.parametrize("read", [chat, completion])
def test_every_sampling_parameter_reaches_the_engine(read: Any) -> None:
    asked = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": -0.2,
        "seed": -7,
        "max_tokens": 9,
        "min_tokens": 2,
        "stop": ["x", "y"],
        "stop_token_ids": [3],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "prompt_logprobs": 1,
        "logit_bias": {"5": 1.5},
        "allowed_token_ids": [1, 2],
        "bad_words": ["no"],
        "skip_special_tokens": False,
        "truncate_prompt_tokens": 4,
    }
    assert read(**asked).params == octavo.SamplingParams(**asked)  # type: ignore[arg-type]


def test_defaults_are_those_of_each_kind() -> None:
    assert completion().params == octavo.SamplingParams(max_tokens=16)
    assert chat().params == octavo.SamplingParams(max_tokens=None)
    assert chat(temperature=None, stream=None, n=None, stop=None, tools=None).params == chat().params


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": None}, 5),
    ],
)
def test_the_newer_name_of_max_tokens_goes_first(body: dict[str, Any], expected: int) -> None:
    assert chat(**body).params.max_tokens == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ([1, 2],)),
        ([[1, 2], [3]], ([1, 2], [3])),
    ],
)
def test_prompts_are_texts_or_token_ids_alone_or_many(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).prompts == expected


@pytest.mark.parametrize("prompt", [None, [], 5, {"a": 1}, ["a", 1], [1, "a"], [[1], "a"], [[1.5]], [True]])
def test_other_prompts_are_refused(prompt: Any) -> None:
    assert refusal("completion", prompt=prompt).parameter.startswith("prompt")


def test_there_is_a_limit_to_the_number_of_prompts() -> None:
    assert len(completion(prompt=["a"] * MOST_PROMPTS).prompts) == MOST_PROMPTS
    assert refusal("completion", prompt=["a"] * (MOST_PROMPTS + 1)).parameter == "prompt"


def test_chat_logprobs_are_asked_for_by_a_flag_and_a_number() -> None:
    assert (chat().num_top_logprobs, chat().params.logprobs) == (None, None)
    assert (chat(logprobs=True).num_top_logprobs, chat(logprobs=True).params.logprobs) == (0, 0)
    asked = chat(logprobs=True, top_logprobs=20)
    assert (asked.num_top_logprobs, asked.params.logprobs) == (20, 20)
    assert chat(logprobs=False, top_logprobs=0).num_top_logprobs is None


def test_an_echo_with_logprobs_takes_those_of_the_prompt_too() -> None:
    echoed = completion(echo=True, logprobs=2)
    assert echoed.echoes == ("hello",)
    assert echoed.params.prompt_logprobs == 2 and not echoed.call.returns_prompt_logprobs
    assert completion(echo=True).params.prompt_logprobs is None
    assert completion(echo=True, prompt=[1, 2]).echoes == (None,)


def test_a_chat_echoes_the_models_own_last_message() -> None:
    said = [*MESSAGES, {"role": "assistant", "content": "well"}]
    assert chat(messages=said, echo=True).echoes == ("well",)
    assert chat(messages=said).echoes == chat(echo=True).echoes == ("",)


def test_what_goes_with_the_messages_reaches_the_template() -> None:
    (prompt,) = chat(
        tools=TOOLS,
        chat_template_kwargs={"enable_thinking": False},
        reasoning_effort="low",
        add_generation_prompt=False,
    ).prompts
    kwargs = {"enable_thinking": False, "reasoning_effort": "low"}
    assert prompt == octavo.ChatPrompt(MESSAGES, TOOLS, False, kwargs, marks=HERMES.marks)


@pytest.mark.parametrize(("given", "thinks"), [({}, False), ({"enable_thinking": True}, True)])
def test_no_effort_at_all_is_no_thinking_unless_the_request_says_so(given: dict[str, bool], thinks: bool) -> None:
    (prompt,) = chat(reasoning_effort="none", chat_template_kwargs=given).prompts
    assert isinstance(prompt, octavo.ChatPrompt)
    assert prompt.template_kwargs == {"reasoning_effort": "none", "enable_thinking": thinks}


def test_a_message_that_is_continued_needs_no_generation_prompt() -> None:
    (prompt,) = chat(continue_final_message=True).prompts
    assert prompt == octavo.ChatPrompt(
        MESSAGES, add_generation_prompt=False, continue_final_message=True, marks=frozenset()
    )
    assert chat(continue_final_message=True, add_generation_prompt=False).prompts == (prompt,)


def test_how_a_request_is_treated() -> None:
    call = chat(request_id="r1", priority=-3, cache_salt="s", deadline_s=2.5, return_token_ids=True, user="u").call
    assert (call.response_id, call.priority, call.cache_salt, call.deadline_s) == ("chatcmpl-r1", -3, "s", 2.5)
    assert call.returns_token_ids and call.streaming is None
    assert completion().call.response_id.startswith("cmpl-")
    assert completion().call.response_id != completion().call.response_id


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, Streaming(False, False)),
        ({}, Streaming(False, False)),
        ({"include_usage": True}, Streaming(True, False)),
        ({"include_usage": True, "continuous_usage_stats": True}, Streaming(True, True)),
    ],
)
def test_stream_options_say_where_the_counts_go(options: Any, expected: Streaming) -> None:
    assert completion(stream=True, stream_options=options).call.streaming == expected


@pytest.mark.parametrize("reader", ["chat", "completion"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 129),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("max_tokens", 0),
        ("seed", "x"),
        ("stop", ["x"] * 17),
        ("stream", "maybe"),
        ("stream_options", [1]),
        ("priority", "high"),
        ("cache_salt", 5),
        ("request_id", "x" * 257),
        ("request_id", 5),
        ("model", 5),
        ("best_of", 3),
        ("response_format", {"type": "xml"}),
        ("response_format", "text"),
        ("structured_outputs", {"verse": "a"}),
        ("guided_regex", 5),
        ("guided_choice", []),
    ],
)
def test_a_bad_value_is_refused_by_name(reader: str, name: str, value: Any) -> None:
    error = refusal(reader, **{name: value})
    assert error.parameter == name
    assert not isinstance(error, Unprocessable)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
        ("logprobs", {"logprobs": 5}),
        ("max_completion_tokens", {"max_completion_tokens": 0}),
        ("include_reasoning", {"include_reasoning": 2}),
        ("continue_final_message", {"continue_final_message": True, "add_generation_prompt": True}),
        ("chat_template", {"chat_template": "{{ messages }}"}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"bos_token": "x"}}),
        ("chat_template_kwargs", {"chat_template_kwargs": [1]}),
        ("functions", {"functions": [{"name": "f"}]}),
        ("modalities", {"modalities": ["audio"]}),
        ("audio", {"audio": {"voice": "x"}}),
    ],
)
def test_what_a_chat_cannot_do_is_refused_by_name(name: str, body: dict[str, Any]) -> None:
    error = refusal("chat", **body)
    assert error.parameter == name
    assert not isinstance(error, Unprocessable)


@pytest.mark.parametrize("body", [{"suffix": "x"}, {"prompt_embeds": "x"}])
def test_what_a_completion_cannot_do_is_refused_by_name(body: dict[str, Any]) -> None:
    assert refusal("completion", **body).parameter in body


@pytest.mark.parametrize(
    ("reader", "name", "body"),
    [
        ("chat", "stream_options", {"stream_options": {"include_usage": True}}),
        ("completion", "stream_options", {"stream": False, "stream_options": {}}),
        ("chat", "top_logprobs", {"top_logprobs": 2}),
        ("chat", "tool_choice", {"tool_choice": "auto"}),
        ("chat", "tool_choice", {"tool_choice": "required", "tools": []}),
        ("chat", "seed", {"seed": 2**63}),
        ("completion", "seed", {"seed": -(2**63) - 1}),
    ],
)
def test_what_kserve_clients_take_for_unprocessable(reader: str, name: str, body: dict[str, Any]) -> None:
    error = refusal(reader, **body)
    assert error.parameter == name
    assert isinstance(error, Unprocessable)


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "text"}},
        {"response_format": None, "guided_json": None, "structured_outputs": None},
        {"n": 2, "best_of": 2},
        {"best_of": 1},
        {"suffix": "", "function_call": None, "modalities": ["text"]},
        {"metadata": {"a": "b"}, "store": False, "service_tier": "auto", "parallel_tool_calls": True},
    ],
)
@pytest.mark.parametrize("read", [chat, completion])
def test_what_asks_for_nothing_else_is_accepted(read: Any, body: dict[str, Any]) -> None:
    read(**body)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"null", b'{"a": ' + b"[" * 100_000, b"5"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(octavo.InvalidRequest, match=r"^body: "):
        Fields.of_body(body)


def test_unknown_fields_are_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "octavo_kserve"):
        chat(novelty=1, user="u", stream=True, stream_options={"include_obfuscation": False})
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG"]
    assert "['stream_options.include_obfuscation']" in caplog.text and "['novelty']" in caplog.text


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_model_goes_by_its_name_or_an_alias(reader: Any) -> None:
    body = {"prompt": "x", "messages": MESSAGES}
    several = models("a", "b")
    for name in ("a", "a-alias"):
        call = reader(fields_of(model=name, **body), several).call
        assert (call.served.name, call.model) == ("a", name)
    assert reader(fields_of(**body), models("only")).call.model == "only"
    with pytest.raises(UnknownModel):
        reader(fields_of(model="c", **body), several)
    with pytest.raises(octavo.InvalidRequest, match="several"):
        reader(fields_of(**body), several)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_a_value_nested_as_deeply_as_json_is_read_is_refused_like_any_other(reader: Any) -> None:
    for depth in range(700, 1000, 3):
        nested = "[" * depth + "]" * depth
        body = f'{{"model": "m", "prompt": "x", "messages": [], "stop": [{nested}]}}'.encode()
        with pytest.raises(octavo.InvalidRequest):
            reader(Fields.of_body(body), models("m"))


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**66), 2**66),
        st.floats(),
        st.text(max_size=3),
        st.sampled_from(["text", "auto", "none", "user", "m", "1", "true", "\ud800"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "role", "1", "m"]), inner),
    max_leaves=4,
)
NAMES = sorted(
    octavo.SamplingParams.parameter_names()
    | BODIES["ChatRequest"]["properties"].keys()
    | BODIES["CompletionRequest"]["properties"].keys()
    | {"suffix", "functions"}
)


@settings(max_examples=150, deadline=None)
@given(body=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_any_values_are_read_or_refused(reader: Any, body: dict[str, Any]) -> None:
    given_fields = {"prompt": "x", "messages": MESSAGES} | body
    with contextlib.suppress(octavo.RequestError):
        read = reader(fields_of(**given_fields), models("m"))
        assert read.call.model == "m" and read.prompts
