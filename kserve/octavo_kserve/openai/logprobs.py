"""Logprobs in the two shapes that the OpenAI API has for them, and in vLLM's for those of a prompt.

Positions are as in CompletionOutput: candidates by token id, the chosen one first. Knows no request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import octavo

# JSON has no infinity; this is what the OpenAI API and vLLM write for "impossible".
LOWEST_LOGPROB = -9999.0
_REPLACEMENT = "\ufffd"

Position = dict[int, octavo.Logprob]


def chat_logprobs(positions: Iterable[Position], num_top: int) -> dict[str, Any]:
    """A list of tokens, each with the `num_top` best candidates at its position."""
    return {"content": [_chat_position(position, num_top) for position in positions], "refusal": None}


def completion_logprobs(positions: Iterable[Position | None], texts: Iterable[str], offset: int) -> dict[str, Any]:
    """Parallel lists, one element a token. `texts` are the chosen tokens', of which the first stands at `offset`.

    Offsets count characters from the beginning of the choice's text. A prompt's first token has no position: None.
    """
    texts = list(texts)
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    positions = list(positions)
    return {
        "text_offset": offsets,
        "token_logprobs": [None if p is None else _finite(next(iter(p.values()))) for p in positions],
        "tokens": texts,
        "top_logprobs": [None if p is None else _by_text(p) for p in positions],
    }


def chosen_texts(positions: Sequence[Position]) -> list[str]:
    """The texts of the chosen tokens; together they are the text."""
    return [next(iter(position.values())).decoded_token for position in positions]


def prompt_logprobs(positions: Sequence[Position | None] | None) -> list[Any] | None:
    """vLLM's shape: at each position an object of token id -> candidate; null at the first."""
    if positions is None:
        return None
    return [None if p is None else {token_id: _candidate(c) for token_id, c in p.items()} for p in positions]


def _chat_position(position: Position, num_top: int) -> dict[str, Any]:
    candidates = list(position.values())
    best = sorted(candidates, key=lambda candidate: candidate.rank)[:num_top]
    return _token(candidates[0]) | {"top_logprobs": [_token(candidate) for candidate in best]}


def _token(candidate: octavo.Logprob) -> dict[str, Any]:
    text = candidate.decoded_token
    # Part of a character has bytes, but U+FFFD does not tell which.
    known = None if _REPLACEMENT in text else list(text.encode("utf-8"))
    return {"token": text, "logprob": _finite(candidate), "bytes": known}


def _by_text(position: Position) -> dict[str, float]:
    """Two tokens may have one text: the first, which is the chosen one if it is among them, stands for both."""
    found: dict[str, float] = {}
    for candidate in position.values():
        found.setdefault(candidate.decoded_token, _finite(candidate))
    return found


def _candidate(candidate: octavo.Logprob) -> dict[str, Any]:
    return {"logprob": _finite(candidate), "rank": candidate.rank, "decoded_token": candidate.decoded_token}


def _finite(candidate: octavo.Logprob) -> float:
    return max(candidate.logprob, LOWEST_LOGPROB)
