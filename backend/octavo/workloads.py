"""The workloads that every measurement uses: seeded prompts as token ids, with the number of tokens to make from each.

Knows no engine and no text. The ids are those of the performance specification, the same for every engine compared.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from octavo.errors import InvalidRequest

# The ids are drawn for this vocabulary; those below the first are control tokens.
FIRST_TOKEN_ID = 17
VOCAB_SIZE = 49152


@dataclass(frozen=True, slots=True)
class Item:
    """One request: its prompt and how many tokens it makes (EOS ignored)."""

    prompt_token_ids: list[int]
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that all come at once."""

    name: str
    title: str
    items: tuple[Item, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Over all requests."""
        return sum(len(item.prompt_token_ids) for item in self.items)

    @property
    def num_output_tokens(self) -> int:
        """Over all requests."""
        return sum(item.num_output_tokens for item in self.items)

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and output together."""
        return max(len(item.prompt_token_ids) + item.num_output_tokens for item in self.items)

    def part(self, indices: Sequence[int]) -> Workload:
        """Only the requests at these indices."""
        return replace(self, items=tuple(self.items[i] for i in indices))

    def clipped(self, num_items: int, num_prompt_tokens: int, num_output_tokens: int) -> Workload:
        """A small piece of it, to see whether it runs and to warm up."""
        items = (
            Item(item.prompt_token_ids[:num_prompt_tokens], min(item.num_output_tokens, num_output_tokens))
            for item in self.items[:num_items]
        )
        return replace(self, items=tuple(items))


def _ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(FIRST_TOKEN_ID, VOCAB_SIZE) for _ in range(count)]


def _single_stream() -> Workload:
    return Workload("W1", "single stream", (Item(_ids(random.Random(1), 128), 128),))


def _offline() -> Workload:
    rng = random.Random(0)
    items = []
    for _ in range(64):
        num_prompt_tokens, num_output_tokens = rng.randint(16, 512), rng.randint(16, 256)
        items.append(Item(_ids(rng, num_prompt_tokens), num_output_tokens))
    return Workload("W2", "offline", tuple(items))


def _shared_prefix() -> Workload:
    rng = random.Random(3)
    prefix = _ids(rng, 1024)
    return Workload("W3", "shared prefix", tuple(Item(prefix + _ids(rng, 32), 32) for _ in range(32)))


def _long_prompt() -> Workload:
    return Workload("W4", "long prompt", (Item(_ids(random.Random(4), 2048), 1),))


_MAKERS = {"W1": _single_stream, "W2": _offline, "W3": _shared_prefix, "W4": _long_prompt}
NAMES = tuple(_MAKERS)


def make(name: str, vocab_size: int = VOCAB_SIZE) -> Workload:
    """The workload of that name. A smaller vocabulary squeezes the ids into its range; the lengths stay.

    Raises InvalidRequest for an unknown name or a vocabulary without room.
    """
    if name not in _MAKERS:
        raise InvalidRequest("workload", name, "one of " + ", ".join(NAMES))
    if vocab_size <= FIRST_TOKEN_ID:
        raise InvalidRequest("vocab_size", vocab_size, f"more than {FIRST_TOKEN_ID}")
    workload = _MAKERS[name]()
    if vocab_size >= VOCAB_SIZE:
        return workload
    squeezed = (replace(item, prompt_token_ids=_squeezed(item.prompt_token_ids, vocab_size)) for item in workload.items)
    return replace(workload, items=tuple(squeezed))


def _squeezed(token_ids: list[int], vocab_size: int) -> list[int]:
    room, full = vocab_size - FIRST_TOKEN_ID, VOCAB_SIZE - FIRST_TOKEN_ID
    return [FIRST_TOKEN_ID + (token_id - FIRST_TOKEN_ID) * room // full for token_id in token_ids]
