"""What crosses between the front and the engine process: tagged messages and their framing over a socket pair.

A frame is a length (4 bytes, little endian) and a msgpack map. Knows neither processes nor threads; never pickles.
"""

from __future__ import annotations

import hashlib
import json
import select
import socket
from typing import Any, Generic, TypeVar

import msgspec

from octavo.config import EngineConfig
from octavo.outputs import EngineOutput, FinishReason, TokenLogprob
from octavo.pooling import Pooling, PoolingKind
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams
from octavo.stats import EngineStats
from octavo.structured_outputs import StructuredOutputs
from octavo.vocabulary import Vocabulary

_LENGTH_BYTES = 4
_READ_BYTES = 1 << 18

T = TypeVar("T")


class Start(msgspec.Struct, tag=True, frozen=True):
    """Load the model."""

    config: EngineConfig


class Submit(msgspec.Struct, tag=True, frozen=True):
    """A new request, or one to be continued."""

    request: EngineRequest


class UseVocabulary(msgspec.Struct, tag=True, frozen=True):
    """What the model's tokens write. Sent before the first request with a grammar."""

    vocabulary: Vocabulary


class Abort(msgspec.Struct, tag=True, frozen=True):
    """End a request, or one child of it."""

    request_id: str
    index: int | None
    reason: FinishReason


class Shutdown(msgspec.Struct, tag=True, frozen=True):
    """Free the device and exit."""


class Hello(msgspec.Struct, tag=True, frozen=True):
    """The first message of an engine process: which wire version it speaks."""

    version: str


class Progress(msgspec.Struct, tag=True, frozen=True):
    """How far loading is: a phase's name, and the fraction of it from 0 to 1."""

    phase: str
    fraction: float


class Ready(msgspec.Struct, tag=True, frozen=True):
    """Loaded. `config` has been resolved on the machine's own terms; `stats` are those before the first step."""

    stats: EngineStats
    config: EngineConfig


class LoadFailed(msgspec.Struct, tag=True, frozen=True):
    """The model cannot be served; the process exits after this."""

    message: str


class Step(msgspec.Struct, tag=True, frozen=True):
    """What one step brought. Sent for every step, as the sign of life, even when it brought nothing."""

    outputs: list[EngineOutput]
    stats: EngineStats | None


class Beat(msgspec.Struct, tag=True, frozen=True):
    """Alive and idle."""


ToEngine = Start | UseVocabulary | Submit | Abort | Shutdown
FromEngine = Hello | Progress | Ready | LoadFailed | Step | Beat


def wire_version() -> str:
    """A digest of the names, types and unsent defaults of everything on the wire: both sides must have the same."""
    messages: tuple[Any, ...] = (
        Start, UseVocabulary, Submit, Abort, Shutdown, Hello, Progress, Ready, LoadFailed, Step, Beat,
    )  # fmt: skip
    payloads: tuple[Any, ...] = (
        EngineConfig, EngineRequest, SamplingParams, StructuredOutputs, Pooling, Vocabulary, EngineOutput, EngineStats,
    )  # fmt: skip
    described: list[Any] = [TokenLogprob._fields, [*FinishReason], [*PoolingKind]]
    # Annotations are strings, so that the digest does not depend on how a Python version prints types.
    described += [[cls.__name__, sorted(cls.__annotations__.items())] for cls in messages + payloads]
    described += [[field.name, repr(field.default)] for field in msgspec.structs.fields(EngineOutput)]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]


class Connection(Generic[T]):
    """One end of a stream socket, which it owns; receives messages of type T. Sending and reading are for one thread
    each.
    """

    def __init__(self, sock: socket.socket, receives: Any) -> None:
        self._socket = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(receives)
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def fileno(self) -> int:
        """The socket's file descriptor, for selectors."""
        return self._socket.fileno()

    def wait(self, timeout_s: float) -> bool:
        """Whether there is something to read (the other side's end included), after at most `timeout_s`."""
        return bool(self._poll.poll(timeout_s * 1000))

    def read(self) -> list[T]:
        """The messages that are whole by now; never blocks.

        Raises EOFError when the other side is gone, msgspec.DecodeError for what is not one of our messages.
        """
        try:
            data = self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError("the other process has ended")
        self._inbox += data
        return self._whole_messages()

    def send(self, message: Any) -> None:
        """Sends one message, waiting for room. Raises ConnectionError when the other side is gone."""
        self._socket.sendall(self._frame(message))

    def queue(self, message: Any) -> None:
        """Adds one message to what `flush` sends. Raises TypeError or UnicodeError when it cannot be encoded."""
        self._outbox += self._frame(message)

    def flush(self) -> bool:
        """Sends of the queue what fits without blocking; whether all of it went. A dead peer swallows everything."""
        try:
            while self._outbox:
                del self._outbox[: self._socket.send(self._outbox, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            return False
        except ConnectionError:
            # Its end shows on the reading side, where what it still said comes first.
            self._outbox.clear()
        return True

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def _frame(self, message: Any) -> bytes:
        body = self._encoder.encode(message)
        return len(body).to_bytes(_LENGTH_BYTES, "little") + body

    def _whole_messages(self) -> list[T]:
        messages = []
        start = 0
        while len(self._inbox) - start >= _LENGTH_BYTES:
            body = start + _LENGTH_BYTES
            end = body + int.from_bytes(self._inbox[start:body], "little")
            if len(self._inbox) < end:
                break
            messages.append(self._decoder.decode(self._inbox[body:end]))
            start = end
        del self._inbox[:start]
        return messages
