"""What crosses between the engine and a grammar process. Knows neither processes nor grammars."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary


class Begin(msgspec.Struct, tag=True, frozen=True):
    """The first message to a process: the tokens, and how many bytes of memory it may take beside them."""

    vocabulary: Vocabulary
    memory_bytes: int


class Limits(msgspec.Struct, frozen=True):
    """What a trial may take before it is ended: of a processor, of time in which its server was awake (as long again it
    may wait for its turn), of memory."""

    cpu_s: float
    awake_s: float
    memory_bytes: int


class Try(msgspec.Struct, tag=True, frozen=True):
    """Compile a grammar, only to see how that ends."""

    number: int
    asked: StructuredOutputs
    limits: Limits


class Withdraw(msgspec.Struct, tag=True, frozen=True):
    """Nobody waits for a trial any more."""

    number: int


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


class Exceeded(StrEnum):
    """Why there is no answer of a trial. AWAKE: its turn has not come, or it was not done, in time. DIED: its process
    has ended by itself, twice."""

    CPU = "cpu"
    AWAKE = "awake"
    DIED = "died"


class Tried(msgspec.Struct, tag=True, frozen=True):
    """How a trial ended: why the grammar cannot be used, or nothing; or which limit it met before that was known."""

    number: int
    error: str = ""
    exceeded: Exceeded | None = None


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


ToGrammar = Begin | Try | Withdraw | Open | Advance | Close
FromGrammar = Started | Tried | Masks
