"""What a prompt and parameters become, and what is refused, each time naming the parameter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from octavo.admission import Admission, Ticket
from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig, resolve
from octavo.errors import InvalidRequest, PromptTooLong
from octavo.prompt import ChatPrompt
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams
from octavo.testing import FAKE_EOS, FAKE_VOCAB_SIZE, make_fake_model
from octavo.text.tokenizer import Tokenizer, open_tokenizer

CONTEXT = 100


@pytest.fixture
def tokenizer(fake_model: Path) -> Tokenizer:
    return open_tokenizer(open_checkpoint(fake_model))


@pytest.fixture
def admission(fake_model: Path, tokenizer: Tokenizer) -> Admission:
    checkpoint = open_checkpoint(fake_model)
    config = resolve(EngineConfig(model=str(fake_model), max_model_len=CONTEXT), checkpoint)
    return Admission(checkpoint, tokenizer, config)


def prepare(admission: Admission, prompt: Any, **params: Any) -> EngineRequest:
    return admission.prepare(Ticket("r", 0), prompt, SamplingParams(**params))[0]


def refused(admission: Admission, prompt: Any, **params: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        prepare(admission, prompt, **params)
    return caught.value


def test_a_text_becomes_tokens(admission: Admission) -> None:
    request, text = admission.prepare(Ticket("r", 3), "abc", SamplingParams())
    assert request.prompt_token_ids == list(b"abc")
    assert text == "abc"
    assert request.request_id == "r#3"


def test_token_ids_are_taken_as_they_are(admission: Admission) -> None:
    request, text = admission.prepare(Ticket("r", 0), (1, 2, 257), SamplingParams())
    assert request.prompt_token_ids == [1, 2, 257]
    assert text is None


def test_messages_are_rendered_with_the_template(admission: Admission) -> None:
    request, text = admission.prepare(Ticket("r", 0), [{"role": "user", "content": "hi"}], SamplingParams())
    assert text == "user: hi\na: "
    assert request.prompt_token_ids == list(text.encode())


def test_a_chat_prompt_brings_its_tools_and_variables_to_the_template(
    admission: Admission, tokenizer: Tokenizer
) -> None:
    tokenizer.chat_template = (
        "{{ messages[0].content }} {{ tools[0].function.name }} {{ add_generation_prompt }} {{ x }}"
    )
    tool = {"type": "function", "function": {"name": "look"}}
    prompt = ChatPrompt([{"role": "user", "content": "hi"}], [tool], False, {"x": 5})
    request, text = admission.prepare(Ticket("r", 0), prompt, SamplingParams(max_tokens=None))
    assert text == "hi look False 5"
    assert request.prompt_token_ids == list(text.encode())
    assert request.params.max_tokens == CONTEXT - len(text)


@pytest.mark.parametrize(
    ("prompt", "parameter"),
    [
        (ChatPrompt([]), "messages"),
        (ChatPrompt({}), "messages"),  # type: ignore[arg-type]
        (ChatPrompt([{"role": "user", "content": "a"}], [{}]), "tools[0]"),
        (ChatPrompt([{"role": "user", "content": "a"}], template_kwargs={"tools": []}), "chat_template_kwargs"),
    ],
)
def test_a_bad_chat_prompt_is_refused_by_its_part(admission: Admission, prompt: ChatPrompt, parameter: str) -> None:
    assert refused(admission, prompt).parameter == parameter


def test_messages_need_a_template(fake_model: Path, tokenizer: Tokenizer, admission: Admission) -> None:
    tokenizer.chat_template = None
    assert refused(admission, [{"role": "user", "content": "hi"}]).parameter == "messages"


@pytest.mark.parametrize("prompt", ["", [], "\ud800", None, 3, b"abc", [True], ["a"], [1.5], [-1], [FAKE_VOCAB_SIZE]])
def test_bad_prompts_are_refused(admission: Admission, prompt: object) -> None:
    assert refused(admission, prompt).parameter.startswith("prompt")


@pytest.mark.parametrize("messages", [[{"role": "user", "content": "a"}, "b"], [{"role": "user", "content": "\udfff"}]])
def test_bad_messages_are_refused(admission: Admission, messages: object) -> None:
    assert refused(admission, messages).parameter.startswith("messages")


def test_a_prompt_must_leave_room_for_one_token(admission: Admission) -> None:
    assert prepare(admission, [1] * (CONTEXT - 1)).params.max_tokens == 1
    with pytest.raises(PromptTooLong, match=rf"{CONTEXT} tokens .* {CONTEXT} tokens"):
        prepare(admission, [1] * CONTEXT)


def test_max_tokens_is_cut_to_the_rest_of_the_context(admission: Admission) -> None:
    assert prepare(admission, "abcd", max_tokens=None).params.max_tokens == CONTEXT - 4
    assert prepare(admission, "abcd", max_tokens=1000, min_tokens=500).params.min_tokens == CONTEXT - 4
    assert prepare(admission, "abcd", max_tokens=5).params.max_tokens == 5


def test_truncation_keeps_the_last_tokens(admission: Admission) -> None:
    assert prepare(admission, "abcdef", truncate_prompt_tokens=2).prompt_token_ids == list(b"ef")
    long = list(range(200))
    assert prepare(admission, long, truncate_prompt_tokens=-1, max_tokens=10).prompt_token_ids == long[-90:]
    assert refused(admission, "a", truncate_prompt_tokens=0).parameter == "truncate_prompt_tokens"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop_token_ids", [1, FAKE_VOCAB_SIZE]),
        ("logit_bias", {FAKE_VOCAB_SIZE: 1}),
        ("allowed_token_ids", [FAKE_VOCAB_SIZE]),
        ("logprobs", FAKE_VOCAB_SIZE + 1),
        ("prompt_logprobs", FAKE_VOCAB_SIZE + 1),
    ],
)
def test_what_lies_outside_the_vocabulary_is_refused(admission: Admission, name: str, value: object) -> None:
    error = refused(admission, "a", **{name: value})
    assert error.parameter == name
    assert str(FAKE_VOCAB_SIZE) in str(error)


def test_eos_stops_unless_it_is_ignored(admission: Admission) -> None:
    assert prepare(admission, "a", stop_token_ids=[7]).stop_token_ids == (FAKE_EOS, 7)
    assert prepare(admission, "a", stop_token_ids=[FAKE_EOS]).stop_token_ids == (FAKE_EOS,)
    assert prepare(admission, "a", stop_token_ids=[7], ignore_eos=True).stop_token_ids == (7,)


def test_bad_words_become_tokens(admission: Admission) -> None:
    assert list(b"no") in prepare(admission, "a", bad_words=["no"]).bad_words_token_ids


def test_a_seed_is_drawn_where_none_is_given(admission: Admission) -> None:
    assert prepare(admission, "a", seed=-5).seed == -5
    assert prepare(admission, "a").seed != prepare(admission, "a").seed


def test_priority_and_salt_are_checked(admission: Admission) -> None:
    for ticket, parameter in [
        (Ticket("r", 0, priority=2**63), "priority"),
        (Ticket("r", 0, 0, "\ud800"), "cache_salt"),
    ]:
        with pytest.raises(InvalidRequest) as caught:
            admission.prepare(ticket, "a", SamplingParams())
        assert caught.value.parameter == parameter


def test_text_with_a_token_that_the_model_lacks_is_refused(tmp_path: Path) -> None:
    folder = make_fake_model(tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": FAKE_VOCAB_SIZE - 1}))
    checkpoint = open_checkpoint(folder)
    admission = Admission(checkpoint, open_tokenizer(checkpoint), resolve(EngineConfig(model=str(folder)), checkpoint))
    assert prepare(admission, "a<eos>").prompt_token_ids == [97, FAKE_EOS]
    assert refused(admission, "a<bos>").parameter == "prompt"


def test_more_logprobs_than_anybody_can_hold_are_refused(long_model: Path, tokenizer: Tokenizer) -> None:
    checkpoint = open_checkpoint(long_model)
    admission = Admission(checkpoint, tokenizer, resolve(EngineConfig(model=str(long_model)), checkpoint))
    assert refused(admission, [1] * 20_000, prompt_logprobs=-1).parameter == "prompt_logprobs"
    assert refused(admission, "a", logprobs=-1, max_tokens=20_000).parameter == "logprobs"
    assert refused(admission, "a", logprobs=-1, n=128, max_tokens=200).parameter == "logprobs"
    assert prepare(admission, [1] * 20_000, prompt_logprobs=20, logprobs=-1).params.logprobs == -1


def test_a_text_far_too_long_is_refused_by_its_beginning(
    admission: Admission, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    encode = tokenizer.encode

    def recording(text: str, add_special_tokens: bool = True) -> list[int]:
        lengths.append(len(text))
        return encode(text, add_special_tokens)

    monkeypatch.setattr(tokenizer, "encode", recording)
    with pytest.raises(PromptTooLong, match=f"of 1000000 characters .* {CONTEXT} tokens"):
        prepare(admission, "a" * 1_000_000)
    assert sum(lengths) < 100 * CONTEXT
    # What a truncation leaves of it may fit.
    assert prepare(admission, "b" + "a" * 50 * CONTEXT, truncate_prompt_tokens=3).prompt_token_ids == list(b"aaa")
