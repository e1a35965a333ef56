"""The vocabulary of the fake model, a token a byte and two special ones; and masks that are there already."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.testing import FAKE_EOS, FAKE_VOCAB_SIZE
from octavo.vocabulary import Vocabulary

BYTES = Vocabulary(
    [bytes([byte]) for byte in range(256)] + [b"<eos>", b"<bos>"], list(range(FAKE_EOS, FAKE_VOCAB_SIZE))
)


@dataclass
class SetMask:
    """A mask that is there."""

    token_ids: list[int]
    num_bytes: int = 9
    error: str = ""
    is_complete: bool = False
    was_missed: bool = False
    is_ready: bool = True
    has_arrived: bool = True
    told: list[int] = field(default_factory=list)

    def allowed(self) -> bytes:
        bits = bytearray(self.num_bytes)
        for token_id in self.token_ids:
            bits[token_id // 8] |= 1 << token_id % 8
        return bytes(bits)

    def advance(self, token_ids: list[int]) -> None:
        self.told += token_ids

    def close(self) -> None:
        pass
