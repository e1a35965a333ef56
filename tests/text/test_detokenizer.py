"""What a caller sees of a completion: worked examples."""

from __future__ import annotations

from typing import Any

import pytest
from text.tiny_tokenizers import SPECIALS, train_byte_level
from tokenizers import decoders

from octavo.sampling_params import SamplingParams
from octavo.text.decoding import ByteLevelDecoding, WindowDecoding
from octavo.text.detokenizer import Detokenizer, TextDelta
from octavo.text.tokenizer import Tokenizer


def tokens_of(tokenizer: Tokenizer, *texts: str) -> list[int]:
    """One token for each text that is one, more for others; nothing is merged across the texts."""
    return [token_id for text in texts for token_id in tokenizer.encode(text, add_special_tokens=False)]


def byte_tokens(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token for each byte."""
    decoding = tokenizer.decoding
    assert isinstance(decoding, ByteLevelDecoding)
    ids = {decoding.token_bytes(token_id): token_id for token_id in range(len(SPECIALS), tokenizer.vocab_size)}
    return [ids[bytes([byte])] for byte in data]


def detokenizer(tokenizer: Tokenizer, prompt: list[int] | None = None, **params: Any) -> Detokenizer:
    return Detokenizer(tokenizer, prompt or [], SamplingParams(max_tokens=None, **params))


def letters(tokenizer: Tokenizer, text: str, **params: Any) -> list[TextDelta]:
    """Pushes the text character by character, the last one as the end."""
    target = detokenizer(tokenizer, **params)
    return [target.push(tokens_of(tokenizer, c), i == len(text) - 1) for i, c in enumerate(text)]


def test_half_a_character_waits_for_its_other_half(byte_level: Tokenizer) -> None:
    ids = tokens_of(byte_level, "\U0001f9ff")
    assert len(ids) > 1
    target = detokenizer(byte_level)
    assert [target.push([token_id], False).text for token_id in ids] == [""] * (len(ids) - 1) + ["\U0001f9ff"]


def test_a_character_never_finished_becomes_one_replacement_at_the_end(byte_level: Tokenizer) -> None:
    ids = tokens_of(byte_level, "a\U0001f9ff")[:-1]
    target = detokenizer(byte_level)
    assert target.push(ids, False).text == "a"
    assert target.push([], True) == TextDelta("\ufffd", [], None, 0)


def test_the_last_piece_holds_what_the_end_flushes(byte_level: Tokenizer) -> None:
    ids = tokens_of(byte_level, "a\U0001f9ff")[:-1]
    delta = detokenizer(byte_level).push(ids, True)
    assert delta.text == "".join(delta.pieces) == "a\ufffd"
    assert len(delta.pieces) == delta.num_tokens == len(ids)


def test_a_character_that_the_prompt_began_belongs_to_the_output(byte_level: Tokenizer) -> None:
    ids = tokens_of(byte_level, "\U0001f9ff")
    assert detokenizer(byte_level, ids[:-1]).push(ids[-1:], True).text == "\U0001f9ff"


def test_a_character_that_the_prompt_broke_is_not_the_outputs(byte_level: Tokenizer) -> None:
    begun = tokens_of(byte_level, "\U0001f9ff")[:-1]
    assert detokenizer(byte_level, begun).push(tokens_of(byte_level, "a"), True).text == "a"
    assert detokenizer(byte_level, begun).push([], True).text == ""


def test_half_a_surrogate_at_the_prompts_end_is_the_prompts(byte_level: Tokenizer) -> None:
    """Python's decoder waits behind ED A7, though no third byte can make it a character."""
    prompt, output = byte_tokens(byte_level, b"\xed\xa7"), byte_tokens(byte_level, b"\xab")
    assert byte_level.decode(prompt + output) == "\ufffd" * 3
    assert detokenizer(byte_level, prompt).push(output, True).text == "\ufffd"


def test_a_character_may_take_a_token_for_each_of_its_bytes(byte_level: Tokenizer) -> None:
    ids = byte_tokens(byte_level, "😀".encode())
    for cut in range(4):
        assert detokenizer(byte_level, ids[:cut]).push(ids[cut:], True).text == "😀"


def test_a_decoder_not_known_in_detail_waits_for_whole_characters_too() -> None:
    backend = train_byte_level()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    tokenizer = Tokenizer(backend, {}, None)
    assert isinstance(tokenizer.decoding, WindowDecoding)
    ids = tokens_of(tokenizer, "a\U0001f9ffb")
    target = detokenizer(tokenizer)
    shown = [target.push([token_id], False).text for token_id in ids]
    assert [text for text in shown if text] == ["a", "\U0001f9ff", "b"]
    assert detokenizer(tokenizer).push(ids[:-2], True).text == "a\ufffd"


def test_special_tokens_are_shown_only_when_asked_for(byte_level: Tokenizer) -> None:
    ids = tokens_of(byte_level, "a<|im_end|>b")
    assert detokenizer(byte_level).push(ids, True).text == "ab"
    assert detokenizer(byte_level, skip_special_tokens=False).push(ids, True).text == "a<|im_end|>b"


def test_byte_tokens_show_once_their_run_has_ended(sentencepiece: Tokenizer) -> None:
    run = tokens_of(sentencepiece, "東")[-3:]
    target = detokenizer(sentencepiece)
    assert [target.push([token_id], False).text for token_id in run] == ["", "", ""]
    assert target.push(tokens_of(sentencepiece, "the")[:1], False).text.startswith("東")


def test_the_first_space_is_dropped_at_the_start_of_a_text_only(sentencepiece: Tokenizer) -> None:
    ids = tokens_of(sentencepiece, "the")
    assert detokenizer(sentencepiece).push(ids, True).text == "the"
    assert detokenizer(sentencepiece, sentencepiece.encode("")).push(ids, True).text == "the"
    assert detokenizer(sentencepiece, ids).push(ids, True).text == " the"


def test_a_stop_string_across_tokens_is_never_shown(byte_level: Tokenizer) -> None:
    deltas = letters(byte_level, "abSTOPcd", stop="STOP")
    assert "".join(delta.text for delta in deltas) == "ab"
    assert [delta.stop for delta in deltas].index("STOP") == 5


def test_while_unfinished_one_character_less_than_the_longest_stop_is_held_back(byte_level: Tokenizer) -> None:
    target = detokenizer(byte_level, stop=["zz", "wxyz"])
    assert target.push(tokens_of(byte_level, "abcdef"), False).text == "abc"
    assert target.push([], True).text == "def"


def test_a_stop_string_at_the_very_start_leaves_nothing(byte_level: Tokenizer) -> None:
    delta = detokenizer(byte_level, stop="ab").push(tokens_of(byte_level, "a", "b", "c"), False)
    assert (delta.text, delta.stop, delta.num_tokens, delta.pieces) == ("", "ab", 2, ["a", "b"])


def test_a_stop_string_is_shown_when_asked_for(byte_level: Tokenizer) -> None:
    delta = detokenizer(byte_level, stop="b", include_stop_str_in_output=True).push(
        tokens_of(byte_level, "a", "b", "c"), False
    )
    assert (delta.text, delta.stop, delta.num_tokens) == ("ab", "b", 2)


def test_the_earliest_stop_wins_and_on_a_tie_the_one_listed_first(byte_level: Tokenizer) -> None:
    the = tokens_of(byte_level, "the")
    assert len(the) == 1
    assert detokenizer(byte_level, stop=["e", "h"]).push(the, True).stop == "h"
    assert detokenizer(byte_level, stop=["he", "h"]).push(the, True).stop == "he"
    assert detokenizer(byte_level, stop=["h", "he"]).push(the, True).stop == "h"


def test_of_overlapping_candidates_the_one_that_is_completed_first_ends_the_text(byte_level: Tokenizer) -> None:
    deltas = letters(byte_level, "xabcd", stop=["abcd", "bc"])
    assert "".join(delta.text for delta in deltas) == "xa"
    assert deltas[3].stop == "bc"


def test_nothing_counts_after_the_end(byte_level: Tokenizer) -> None:
    target = detokenizer(byte_level, stop="b")
    assert target.push(tokens_of(byte_level, "a", "b", "b", "b"), False).num_tokens == 2
    assert target.push(tokens_of(byte_level, "b"), True) == TextDelta("", [], None, 0)


def test_stop_strings_are_not_looked_for_before_min_tokens(byte_level: Tokenizer) -> None:
    ids = tokens_of(byte_level, "a", "b", "c", "a", "b")
    assert detokenizer(byte_level, stop="b", min_tokens=2).push(ids, True).text == "a"
    assert detokenizer(byte_level, stop="b", min_tokens=3).push(ids, True).text == "abca"


def test_a_stop_that_only_ends_after_min_tokens_counts_from_its_first_character(byte_level: Tokenizer) -> None:
    ids = tokens_of(byte_level, "a", "b", "c", "d")
    assert detokenizer(byte_level, stop=["a", "abc"], min_tokens=3).push(ids, True).text == ""


def test_a_stop_string_is_found_in_what_the_end_flushes(sentencepiece: Tokenizer) -> None:
    ids = tokens_of(sentencepiece, "the東")
    delta = detokenizer(sentencepiece, stop="東").push(ids, True)
    assert (delta.text, delta.stop) == ("the", "東")


@pytest.mark.parametrize("num_pushes", [1, 5])
def test_a_replay_gives_the_same_text(byte_level: Tokenizer, num_pushes: int) -> None:
    ids = tokens_of(byte_level, "the model was 😀 and stopped")
    first = detokenizer(byte_level, stop="stop")
    shown = "".join(first.push([token_id], False).text for token_id in ids)
    again, size = detokenizer(byte_level, stop="stop"), -(-len(ids) // num_pushes)
    assert "".join(again.push(ids[i : i + size], False).text for i in range(0, len(ids), size)) == shown
    assert shown == "the model was 😀 and "
