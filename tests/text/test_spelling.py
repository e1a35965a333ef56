"""Logprobs are handed out with the text that is shown, cut where it is cut."""

from __future__ import annotations

from octavo.outputs import Logprob
from octavo.text.spelling import Spelling


def positions(*pieces: str) -> list[dict[int, Logprob]]:
    """One position a piece, with another candidate beside the chosen one."""
    return [{i: Logprob(-0.5, 1, piece), 100 + i: Logprob(-2.0, 2, "other")} for i, piece in enumerate(pieces)]


def texts(found: list[dict[int, Logprob]]) -> list[str]:
    return [next(iter(position.values())).decoded_token for position in found]


def test_what_is_shown_at_once_is_handed_out_as_it_is() -> None:
    new = positions("ab", "", "c")
    assert Spelling().push(new, "abc", finished=False) == new


def test_a_position_waits_for_all_of_its_text() -> None:
    spelling = Spelling()
    assert texts(spelling.push(positions("ab", "cd"), "abc", finished=False)) == ["ab"]
    assert texts(spelling.push([], "", finished=False)) == []
    assert texts(spelling.push(positions("e"), "de", finished=False)) == ["cd", "e"]


def test_what_a_stop_string_cut_off_is_cut_off_here_too() -> None:
    spelling = Spelling()
    assert texts(spelling.push(positions("xa", "b"), "", finished=False)) == []
    assert texts(spelling.push(positions("c"), "x", finished=True)) == ["x", "", ""]


def test_what_the_end_flushes_belongs_to_the_last() -> None:
    assert texts(Spelling().push(positions("a", ""), "a\ufffd", finished=True)) == ["a", "\ufffd"]


def test_only_the_chosen_ones_text_is_cut() -> None:
    (found,) = Spelling().push(positions("abc"), "a", finished=True)
    assert found == {0: Logprob(-0.5, 1, "a"), 100: Logprob(-2.0, 2, "other")}


def test_an_end_without_anything_brings_nothing() -> None:
    assert Spelling().push([], "", finished=True) == []
