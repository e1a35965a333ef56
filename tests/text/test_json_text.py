"""The text that a JSON string stands for, however it is cut: what json says of it, and of what is broken as much."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.text.json_text import JsonText


def said(pieces: list[str]) -> str:
    text = JsonText()
    return "".join(text.push(piece) for piece in pieces)


@given(text=st.text(st.characters(codec="utf-8")), is_ascii=st.booleans(), size=st.integers(1, 7))
def test_it_is_what_json_reads_however_it_is_cut(text: str, is_ascii: bool, size: int) -> None:
    written = json.dumps(text, ensure_ascii=is_ascii)[1:-1]
    assert said([written[i : i + size] for i in range(0, len(written), size)]) == text


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (r"a\xb", r"a\xb"),
        (r"\u12G4", r"\u12G4"),
        ("a\nb", "a\nb"),
        (r"a\ud83dz", "a\ufffdz"),
        (r"\ude00\ud83d\ude00", "\ufffd😀"),
        (r"a\ud83d", "a"),
        (r"a\u00e", "a"),
        ("a\\", "a"),
    ],
)
def test_what_json_does_not_know_stays_and_what_is_not_whole_waits(written: str, expected: str) -> None:
    assert said([written]) == said(list(written)) == expected
