"""The chosen tokens' texts, put together, are the text: whatever is held back, cut off, split or broken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.checkpoint import open_checkpoint
from octavo.live_request import Completion
from octavo.outputs import CompletionOutput, EngineOutput, FinishReason, TokenLogprob
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams
from octavo.testing import FAKE_EOS, make_fake_model
from octavo.text.tokenizer import Tokenizer, open_tokenizer


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return open_tokenizer(open_checkpoint(make_fake_model(tmp_path_factory.mktemp("models") / "bytes")))


def run(tokenizer: Tokenizer, pushes: list[list[int]], with_eos: bool, **params: Any) -> CompletionOutput:
    """All of a completion whose tokens came in these pushes, merged as a stream merges them."""
    request = EngineRequest(request_id="r", prompt_token_ids=[1], params=SamplingParams(**params), seed=1)
    child = Completion(tokenizer, request, 0)
    whole = CompletionOutput(index=0)
    last = len(pushes) - 1
    for i, token_ids in enumerate(pushes):
        eos = with_eos and i == last
        token_ids = [*token_ids, FAKE_EOS] if eos else token_ids
        new = EngineOutput(
            request_id="r",
            index=0,
            token_ids=token_ids,
            finish_reason=None if i < last else FinishReason.STOP if eos else FinishReason.LENGTH,
            stop_token_id=FAKE_EOS if eos else None,
            logprobs=[[TokenLogprob(token_id, -0.5, 1), TokenLogprob(0, -1.0, 2)] for token_id in token_ids],
        )
        whole.extend(child.push(new))
        if child.finished:
            break
    return whole


def spelled(output: CompletionOutput) -> str:
    assert output.logprobs is not None
    return "".join(next(iter(position.values())).decoded_token for position in output.logprobs)


TOKENS = st.one_of(
    st.sampled_from("ab").map(ord), st.sampled_from([0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0]), st.integers(0, 255)
)


@settings(deadline=None)
@given(
    pushes=st.lists(st.lists(TOKENS, min_size=1, max_size=4), min_size=1, max_size=8),
    stop=st.lists(st.text("ab\xe9\u20ac\ufffd", min_size=1, max_size=4), max_size=3),
    with_eos=st.booleans(),
    shows_stop=st.booleans(),
    min_tokens=st.integers(0, 4),
)
def test_the_chosen_tokens_spell_the_text(
    bytes_tokenizer: Tokenizer,
    pushes: list[list[int]],
    stop: list[str],
    with_eos: bool,
    shows_stop: bool,
    min_tokens: int,
) -> None:
    output = run(
        bytes_tokenizer,
        pushes,
        with_eos,
        logprobs=0,
        stop=stop,
        include_stop_str_in_output=shows_stop,
        min_tokens=min_tokens,
    )
    assert spelled(output) == output.text
    assert output.logprobs is not None
    assert len(output.logprobs) == len(output.token_ids)


def test_a_token_that_was_half_cut_off_spells_its_other_half(bytes_tokenizer: Tokenizer) -> None:
    output = run(bytes_tokenizer, [[*b"xa"], [*b"b"], [*b"cd"]], False, logprobs=0, stop=["abc"])
    assert (output.text, spelled(output), output.token_ids) == ("x", "x", [*b"xabc"])
