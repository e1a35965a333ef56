"""What tokens write, for each kind of tokenizer: put together, they are the text that its own decoder gives."""

from __future__ import annotations

import pytest
from text.tiny_tokenizers import TEXTS

from octavo.text.tokenizer import Tokenizer

ORDINARY = [text for text in TEXTS if "<|" not in text]


@pytest.mark.parametrize("kind", ["smollm2", "byte_level", "sentencepiece"])
def test_the_bytes_of_a_texts_tokens_are_the_text(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokens = tokenizer.vocabulary.tokens
    for text in ORDINARY:
        token_ids = tokenizer.encode("a" + text, add_special_tokens=False)
        written = b"".join(tokens[token_id] for token_id in token_ids).decode("utf-8", "replace")
        assert written.removeprefix(" ") == tokenizer.decode(token_ids)


def test_a_byte_token_is_one_byte_and_a_leading_space_is_kept(sentencepiece: Tokenizer) -> None:
    tokens = sentencepiece.vocabulary.tokens
    assert [tokens[3 + byte] for byte in (0x0A, 0xE2)] == [b"\n", b"\xe2"]
    assert any(token.startswith(b" t") for token in tokens)


def test_a_decoder_not_known_in_detail_is_asked_behind_another_token(windowed: Tokenizer) -> None:
    tokens = windowed.vocabulary.tokens
    ids = [token_id for token_id in range(windowed.vocab_size) if token_id not in windowed.special_token_ids]
    for second in ids:
        assert windowed.decode([ids[0], second]).encode().endswith(tokens[second])


@pytest.mark.parametrize("windowed", ["metaspace"], indirect=True)
def test_a_space_that_only_the_first_token_of_a_text_loses_is_the_tokens(windowed: Tokenizer) -> None:
    assert b" quick" in windowed.vocabulary.tokens and b"quick" in windowed.vocabulary.tokens


def test_special_tokens_are_named_as_such(smollm2: Tokenizer) -> None:
    assert set(smollm2.vocabulary.special_token_ids) == smollm2.special_token_ids
    assert len(smollm2.vocabulary.tokens) == smollm2.vocab_size
