"""Vocabulary: what each token of a model writes. Knows no tokenizer and no text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens: the bytes that each token id adds to a text, empty for an id without any. special_token_ids: those that
    stand for something else than their text, which are no part of a document."""

    tokens: list[bytes]
    special_token_ids: list[int]
