"""What crosses between the engine and a grammar process. Knows neither processes nor grammars."""

from __future__ import annotations

import msgspec

from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary


class Begin(msgspec.Struct, tag=True, frozen=True):
    """The first message to a process: the tokens, and how many bytes of memory it may take beside them."""

    vocabulary: Vocabulary
    memory_bytes: int


class Try(msgspec.Struct, tag=True, frozen=True):
    """Compile a grammar, only to see how that ends: with the process itself if it takes so much of a processor."""

    asked: StructuredOutputs
    cpu_s: float


class Open(msgspec.Struct, tag=True, frozen=True):
    """Follow a text by a grammar from now on: the tokens that it has so far, and those that may end it."""

    number: int
    asked: StructuredOutputs
    token_ids: list[int]
    end_token_ids: list[int]


class Advance(msgspec.Struct, tag=True, frozen=True):
    """A text has more tokens."""

    number: int
    token_ids: list[int]


class Close(msgspec.Struct, tag=True, frozen=True):
    """A text has ended."""

    number: int


class Started(msgspec.Struct, tag=True, frozen=True):
    """The process is ready; what it is told now is done at once."""


class Tried(msgspec.Struct, tag=True, frozen=True):
    """How a trial ended: why the grammar cannot be used, or nothing."""

    error: str


class Mask(msgspec.Struct, tag=True, frozen=True):
    """What a text of so many tokens may go on with.

    allowed: bit t % 8 of byte t // 8 is token t. is_complete: nothing but an end may follow. is_slow: later ones may
    take their time. error: why the grammar cannot be followed any further, or nothing.
    """

    number: int
    num_tokens: int
    allowed: bytes
    is_complete: bool = False
    is_slow: bool = False
    error: str = ""


class Masks(msgspec.Struct, tag=True, frozen=True):
    """The answers to what came together."""

    masks: list[Mask]


ToGrammar = Begin | Try | Open | Advance | Close
FromGrammar = Started | Tried | Masks
