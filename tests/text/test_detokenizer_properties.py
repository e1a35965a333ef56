"""What holds for any tokens, in any pushes, with any stop strings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.sampling_params import SamplingParams
from octavo.text.detokenizer import Detokenizer
from octavo.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
KINDS = ["smollm2", "byte_level", "sentencepiece"]
# Stops are cut out of what is generated, so that most of them are found.
STOP_ALPHABET = "abeth 0.\n\ufffdé"


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


@st.composite
def token_ids(draw: st.DrawFn, tokenizer: Tokenizer, max_size: int = 24) -> list[int]:
    """Any ids, ids without a token, tokens that are no whole characters, and real texts cut anywhere."""
    low = st.integers(0, min(tokenizer.vocab_size + 2, 300))
    any_id = st.integers(0, tokenizer.vocab_size + 2)
    texts = st.text("ab é東😀", max_size=4).map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    runs = st.lists(st.one_of(low.map(lambda i: [i]), any_id.map(lambda i: [i]), texts), max_size=max_size)
    ids = [token_id for run in draw(runs) for token_id in run]
    return ids[draw(st.integers(0, 2)) :]


def push_all(target: Detokenizer, pushes: list[list[int]]) -> tuple[str, list[str], str | None, int]:
    deltas = [target.push(ids, False) for ids in pushes] + [target.push([], True)]
    stops = [delta.stop for delta in deltas if delta.stop is not None]
    assert len(stops) <= 1
    assert all(len(delta.pieces) == delta.num_tokens for delta in deltas)
    pieces = [piece for delta in deltas for piece in delta.pieces]
    text = "".join(delta.text for delta in deltas)
    return text, pieces, stops[0] if stops else None, sum(delta.num_tokens for delta in deltas)


def chunked(data: st.DataObject, ids: list[int]) -> list[list[int]]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    return [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


@given(data=st.data(), skip=st.booleans())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_text_is_what_the_tokenizer_decodes(tokenizer: Tokenizer, data: st.DataObject, skip: bool) -> None:
    ids = data.draw(token_ids(tokenizer))
    params = SamplingParams(skip_special_tokens=skip)
    text, pieces, _, _ = push_all(Detokenizer(tokenizer, [], params), [[token_id] for token_id in ids])
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)
    assert text.startswith("".join(pieces))
    last = Detokenizer(tokenizer, [], params).push(ids, True)
    assert last.text == text
    if ids:
        assert "".join(last.pieces) == text


@given(data=st.data(), skip=st.booleans())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_after_a_prompt_the_text_is_what_the_output_adds(tokenizer: Tokenizer, data: st.DataObject, skip: bool) -> None:
    prompt, ids = data.draw(token_ids(tokenizer, 6)), data.draw(token_ids(tokenizer, 6))
    before = tokenizer.decode(prompt, skip_special_tokens=skip)
    both = tokenizer.decode(prompt + ids, skip_special_tokens=skip)
    delta = Detokenizer(tokenizer, prompt, SamplingParams(skip_special_tokens=skip)).push(ids, True)
    # Where the output changes how the prompt's end reads, "what is added" has no meaning.
    if both.startswith(before) and not before.endswith("\ufffd"):
        assert delta.text == both.removeprefix(before)
    else:
        assert both.endswith(delta.text)


@given(data=st.data(), min_tokens=st.integers(0, 6), include=st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_pushes_do_not_matter_and_stops_are_found_as_in_plain_text(
    tokenizer: Tokenizer, data: st.DataObject, min_tokens: int, include: bool
) -> None:
    ids = data.draw(token_ids(tokenizer))
    stops = data.draw(st.lists(st.text(STOP_ALPHABET, min_size=1, max_size=4), max_size=4))
    whole = tokenizer.decode(ids)
    if whole:
        start = data.draw(st.integers(0, len(whole) - 1))
        stops.append(whole[start : start + data.draw(st.integers(1, 5))])
    common: dict[str, Any] = {"max_tokens": None, "min_tokens": min_tokens, "include_stop_str_in_output": include}
    params = SamplingParams(stop=tuple(stops), **common)

    result = push_all(Detokenizer(tokenizer, [], params), chunked(data, ids))
    assert result == push_all(Detokenizer(tokenizer, [], params), [[token_id] for token_id in ids])

    free = Detokenizer(tokenizer, [], SamplingParams(**common))
    pieces = [free.push([token_id], False).text for token_id in ids]
    text, stop, num_tokens = truncate([*pieces, free.push([], True).text], params)
    assert (result[0], result[2], result[3]) == (text, stop, min(num_tokens, len(ids)))
    assert result[1] == pieces[: result[3]]


def truncate(pieces: list[str], params: SamplingParams) -> tuple[str, str | None, int]:
    """The rule, written down the slow way. The last piece belongs to no token."""
    text = ""
    for num_tokens, piece in enumerate(pieces, start=1):
        before, text = len(text), text + piece
        found = [
            (start, order, stop)
            for order, stop in enumerate(params.stop)
            for start in range(len(text))
            if text.startswith(stop, start) and start + len(stop) > before
        ]
        if found and min(num_tokens, len(pieces) - 1) >= params.min_tokens:
            start, _, stop = min(found)
            return text[: start + len(stop) * params.include_stop_str_in_output], stop, num_tokens
    return text, None, len(pieces)


@given(data=st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_decoders_not_known_in_detail_give_the_same_text(windowed: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, windowed.vocab_size + 1), max_size=40))
    cut = data.draw(st.integers(0, len(ids)))
    before, both = windowed.decode(ids[:cut]), windowed.decode(ids)
    text = push_all(Detokenizer(windowed, ids[:cut], SamplingParams()), [[token_id] for token_id in ids[cut:]])[0]
    if both.startswith(before):
        assert text == both.removeprefix(before)


@given(data=st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_token_texts_concatenate_wherever_tokens_are_whole_characters(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = tokenizer.encode(data.draw(st.text("abc .\n1", max_size=20)), add_special_tokens=False)
    text = "".join(tokenizer.token_text(token_id) for token_id in ids)
    # One token alone keeps the space that the start of a text loses.
    assert tokenizer.decode(ids) in (text, text.removeprefix(" "))
