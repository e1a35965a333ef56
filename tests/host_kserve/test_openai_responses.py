"""What streams bring to the objects of the OpenAI API: texts, logprobs in both shapes, counts, ends."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from octavo import ChatFormat, CompletionOutput, FinishReason, Logprob, RequestOutput, SamplingParams, Usage
from octavo_kserve.openai.chat_response import ChatEncoder
from octavo_kserve.openai.completion_response import CompletionEncoder
from octavo_kserve.openai.request import Call, GenerateRequest, MessageSettings, Streaming
from octavo_kserve.replies import json_bytes
from octavo_kserve.served_model import ServedModel

TOKENIZER = SimpleNamespace(
    decode=lambda token_ids: "".join(map(chr, token_ids)), token_text=lambda token_id: chr(token_id)
)

PLAIN = MessageSettings(format=ChatFormat(None, None), shows_reasoning=True, parallel_tool_calls=True)


def request(
    streaming: Streaming | None = None,
    *,
    num_prompts: int = 1,
    echo: str | None = "",
    num_top_logprobs: int | None = None,
    message: MessageSettings = PLAIN,
    **settings: Any,
) -> GenerateRequest:
    """A request as the readers make them; the other settings are sampling parameters, or of its call."""
    own = {name: settings.pop(name, False) for name in ("returns_token_ids", "returns_prompt_logprobs")}
    call = Call(
        served=ServedModel("m", SimpleNamespace(tokenizer=TOKENIZER), 1),  # type: ignore[arg-type]
        model="m",
        response_id="id-1",
        streaming=streaming,
        priority=0,
        cache_salt="",
        deadline_s=None,
        **own,
    )
    return GenerateRequest(
        call=call,
        prompts=("p",) * num_prompts,
        echoes=(echo,) * num_prompts,
        params=SamplingParams(**settings),
        num_top_logprobs=num_top_logprobs,
        message=message,
    )


def output(*completions: CompletionOutput, usage: Usage = Usage(3, 2, 1), **settings: Any) -> RequestOutput:  # noqa: B008
    return RequestOutput(
        request_id="r", prompt="abc", prompt_token_ids=[97, 98, 99], outputs=list(completions), usage=usage, **settings
    )


def part(text: str, index: int = 0, end: FinishReason | None = None, **settings: Any) -> CompletionOutput:
    return CompletionOutput(index=index, text=text, finish_reason=end, **settings)


def candidates(*texts: str) -> dict[int, Logprob]:
    """The chosen one first; the worse, the later in the alphabet."""
    return {ord(text[0]): Logprob(-float(ord(text[0]) - 96), ord(text[0]) - 96, text) for text in texts}


PIECES = [candidates("b", "a"), candidates("a", "b"), candidates("d", "a", "b")]
STREAMING = Streaming(False, False)


def test_a_whole_chat_is_one_message_for_each_choice() -> None:
    encoder = ChatEncoder(request(n=2, temperature=1))
    whole = encoder.whole([output(part("x", 0, FinishReason.STOP, stop_reason="!"), part("y", 1, FinishReason.LENGTH))])
    assert whole.pop("created") > 0
    assert whole == {
        "id": "id-1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": "!",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "y", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
                "stop_reason": None,
            },
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
        },
    }


def test_choices_of_many_prompts_are_numbered_in_the_prompts_order() -> None:
    encoder = CompletionEncoder(request(n=2, num_prompts=2))
    outputs = [output(part(f"{name}0", 0), part(f"{name}1", 1)) for name in "ab"]
    whole = encoder.whole(outputs)
    assert [(choice["index"], choice["text"]) for choice in whole["choices"]] == [
        (0, "a0"),
        (1, "a1"),
        (2, "b0"),
        (3, "b1"),
    ]
    assert (whole["object"], whole["usage"]["prompt_tokens"], whole["usage"]["total_tokens"]) == (
        "text_completion",
        6,
        10,
    )


def test_a_streamed_chat_begins_with_whose_message_it_is() -> None:
    encoder = ChatEncoder(request(STREAMING, n=2))
    first = encoder.chunks(0, output(part("x", 0), part("y", 1)))
    assert [chunk["choices"][0]["delta"] for chunk in first] == [
        {"role": "assistant", "content": ""},
        {"content": "x"},
        {"role": "assistant", "content": ""},
        {"content": "y"},
    ]
    (last,) = encoder.chunks(0, output(part("", 0, FinishReason.STOP)))
    assert last["object"] == "chat.completion.chunk" and "usage" not in last
    assert last["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]


def test_the_last_text_and_the_end_come_together() -> None:
    encoder = CompletionEncoder(request(STREAMING))
    (chunk,) = encoder.chunks(0, output(part("x", 0, FinishReason.LENGTH)))
    assert (chunk["choices"][0]["text"], chunk["choices"][0]["finish_reason"]) == ("x", "length")


def test_what_shows_nothing_is_not_sent() -> None:
    silent = part("", token_ids=[1])
    assert CompletionEncoder(request(STREAMING)).chunks(0, output(silent)) == []
    assert len(CompletionEncoder(request(STREAMING, returns_token_ids=True)).chunks(0, output(silent))) == 2


@pytest.mark.parametrize(
    ("streaming", "expected"),
    [
        (Streaming(False, False), "none"),
        (Streaming(True, False), "null"),
        (Streaming(True, True), "counts"),
        (Streaming(False, True), "counts"),
    ],
)
def test_chunks_have_the_counts_that_were_asked_for(streaming: Streaming, expected: str) -> None:
    encoder = CompletionEncoder(request(streaming, num_prompts=2))
    encoder.chunks(0, output(part("x"), usage=Usage(3, 1, 0)))
    (chunk,) = encoder.chunks(1, output(part("y"), usage=Usage(4, 2, 2)))
    counts = {"none": "absent", "null": None, "counts": 10}[expected]
    usage = chunk.get("usage", "absent")
    assert (usage["total_tokens"] if isinstance(usage, dict) else usage) == counts
    last = encoder.last_chunk()
    assert last["choices"] == [] and last["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


def test_chat_logprobs_have_bytes_and_the_best_candidates() -> None:
    encoder = ChatEncoder(request(num_top_logprobs=1, logprobs=1))
    (choice,) = encoder.whole(
        [output(part("bé\ufffd", logprobs=[*PIECES[:1], candidates("é"), candidates("\ufffd")]))]
    )["choices"]
    first, second, third = choice["logprobs"]["content"]
    assert first == {
        "token": "b",
        "logprob": -2.0,
        "bytes": [98],
        "top_logprobs": [{"token": "a", "logprob": -1.0, "bytes": [97]}],
    }
    assert second["bytes"] == [0xC3, 0xA9]
    assert third["bytes"] is None


def test_a_chat_without_top_logprobs_has_those_of_its_tokens_only() -> None:
    encoder = ChatEncoder(request(num_top_logprobs=0, logprobs=0))
    (choice,) = encoder.whole([output(part("b", logprobs=[candidates("b")]))])["choices"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == []


def test_completion_logprobs_are_lists_of_equal_length() -> None:
    encoder = CompletionEncoder(request(num_top_logprobs=2, logprobs=2))
    (choice,) = encoder.whole([output(part("bad", logprobs=PIECES))])["choices"]
    assert choice["logprobs"] == {
        "text_offset": [0, 1, 2],
        "token_logprobs": [-2.0, -1.0, -4.0],
        "tokens": ["b", "a", "d"],
        "top_logprobs": [{"b": -2.0, "a": -1.0}, {"a": -1.0, "b": -2.0}, {"d": -4.0, "a": -1.0, "b": -2.0}],
    }


def test_streamed_logprobs_concatenate_to_those_of_the_whole() -> None:
    asked: dict[str, Any] = {"num_top_logprobs": 2, "logprobs": 2, "echo": "abc", "prompt_logprobs": 2}
    positions = [None, candidates("b"), candidates("c", "a")]
    (whole,) = CompletionEncoder(request(**asked)).whole(
        [output(part("bad", logprobs=PIECES), prompt_logprobs=positions)]
    )["choices"]
    encoder = CompletionEncoder(request(STREAMING, **asked))
    chunks = encoder.chunks(0, output(part("b", logprobs=PIECES[:1]), prompt_logprobs=positions))
    chunks += encoder.chunks(0, output(part("ad", logprobs=PIECES[1:])))
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == whole["text"] == "abcbad"
    for name, values in whole["logprobs"].items():
        assert [value for choice in choices for value in choice["logprobs"][name]] == values
    assert whole["logprobs"]["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert whole["logprobs"]["token_logprobs"][:2] == [None, -2.0]
    assert "prompt_logprobs" not in whole


def test_the_impossible_has_a_number_that_json_can_hold() -> None:
    never = {97: Logprob(-math.inf, 1, "a")}
    encoder = ChatEncoder(request(num_top_logprobs=1, logprobs=1))
    (choice,) = encoder.whole([output(part("a", logprobs=[never]))])["choices"]
    assert choice["logprobs"]["content"][0]["logprob"] == -9999.0


def test_two_tokens_of_one_text_count_as_the_chosen_one() -> None:
    twice = {1: Logprob(-3.0, 2, "a"), 2: Logprob(-1.0, 1, "a")}
    encoder = CompletionEncoder(request(num_top_logprobs=1, logprobs=1))
    (choice,) = encoder.whole([output(part("a", logprobs=[twice]))])["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -3.0}]


def test_an_echo_of_token_ids_is_their_text() -> None:
    encoder = CompletionEncoder(request(STREAMING, echo=None))
    chunks = encoder.chunks(0, output(part("x")))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["abc", "x"]
    (choice,) = CompletionEncoder(request(echo=None)).whole([output(part("x"))])["choices"]
    assert choice["text"] == "abcx"


def test_a_chat_goes_on_from_its_echo() -> None:
    (choice,) = ChatEncoder(request(echo="well")).whole([output(part("!"))])["choices"]
    assert choice["message"]["content"] == "well!"
    first, _ = ChatEncoder(request(STREAMING, echo="well")).chunks(0, output(part("!")))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "well"}


def test_token_ids_and_prompt_logprobs_stand_where_vllm_has_them() -> None:
    asked: dict[str, Any] = {"returns_token_ids": True, "returns_prompt_logprobs": True}
    given = output(part("x", token_ids=[120]), prompt_logprobs=[None, candidates("b")])
    expected = [None, {98: {"logprob": -2.0, "rank": 2, "decoded_token": "b"}}]
    chat = ChatEncoder(request(**asked)).whole([given])
    assert (chat["prompt_token_ids"], chat["prompt_logprobs"]) == ([97, 98, 99], expected)
    assert chat["choices"][0]["token_ids"] == [120]
    (choice,) = CompletionEncoder(request(**asked)).whole([given])["choices"]
    assert (choice["prompt_token_ids"], choice["prompt_logprobs"], choice["token_ids"]) == (
        [97, 98, 99],
        expected,
        [120],
    )
    first, second = CompletionEncoder(request(STREAMING, **asked)).chunks(0, given)
    assert first["choices"][0]["prompt_token_ids"] == [97, 98, 99]
    assert second["choices"][0]["token_ids"] == [120]
    first, second = ChatEncoder(request(STREAMING, **asked)).chunks(0, given)
    assert (first["prompt_token_ids"], second["choices"][0]["token_ids"]) == ([97, 98, 99], [120])


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_has_not_is_never_sent(number: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_bytes({"a": [number]})


def test_half_a_character_is_escaped() -> None:
    assert json_bytes({"a": "é\ud800"}) == '{"a":"é\\ud800"}'.encode()
