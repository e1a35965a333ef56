"""What a prompt and parameters become, and what is refused, each time naming the parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo.admission import Admission, Ticket
from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig, resolve
from octavo.errors import InvalidRequest, PromptTooLong
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams
from octavo.testing import FAKE_EOS, FAKE_VOCAB_SIZE
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
