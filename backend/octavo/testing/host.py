"""Host: a model server as the conformance suite sees it: requests in, answers out, and a process that can be ended.

A host's test implements it with a real client against a real server. Knows no protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from octavo.outputs import RequestOutput
from octavo.sampling_params import SamplingParams


class ErrorKind(StrEnum):
    """What a client can tell of an error without reading its text."""

    INVALID = "invalid"
    NOT_FOUND = "not found"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"


class HostError(Exception):
    """The client was told that its request failed: `text` without what the protocol puts before every error.

    `kind` is None where the protocol has no place for it, as in the middle of some streams. A connection that breaks
    is no HostError, unless nobody took it in the first place: that is UNAVAILABLE.
    """

    def __init__(self, kind: ErrorKind | None, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: sampling parameters as a client writes them in JSON; `model` None for the one that is served."""

    prompt: str
    parameters: Mapping[str, object]
    model: str | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one event of a stream brings: texts and finish reasons by completion.

    `num_prompt_tokens` is None, and `num_output_tokens` 0, in events that do not say; the latter add up.
    """

    texts: Mapping[int, str] = field(default_factory=dict)
    finish_reasons: Mapping[int, str] = field(default_factory=dict)
    num_prompt_tokens: int | None = None
    num_output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer: one text and one finish reason a completion, tokens of all of them together."""

    texts: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    num_prompt_tokens: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the host's metrics say; `kv_cache_usage` is from 0 to 1."""

    num_running: int
    num_waiting: int
    kv_cache_usage: float

    @property
    def is_none(self) -> bool:
        """Whether nothing runs, waits, or holds a block."""
        return not (self.num_running or self.num_waiting or self.kv_cache_usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """How the host's engine is configured, and how many seconds it may take to do what it should do at once."""

    max_model_len: int
    max_num_seqs: int
    max_waiting: int
    patience_s: float = 10.0


class Host(Protocol):
    """One server with one model. All methods may be called from several threads."""

    @property
    def facts(self) -> HostFacts:
        """What the suite has to know to fill it."""

    def generate(self, ask: Ask) -> Answer:
        """One answer. Raises HostError, with its kind."""

    def stream(self, ask: Ask) -> AbstractContextManager[Iterator[Piece]]:
        """Hands the request over, without waiting for a piece; leaving the block before the end, the client is gone.

        Entering, or the iterator, raises HostError; the iterator raises anything else for a stream that is cut.
        """

    def load(self) -> Load:
        """How busy it is."""

    def engine_pids(self) -> list[int]:
        """Its engine processes."""

    def terminate(self) -> None:
        """Asks the server to end (SIGTERM); returns at once."""

    def wait(self) -> int:
        """Waits for the server to end after that; its exit code."""


class Offline(Protocol):
    """What the host's answers are compared to: `octavo.LLM` on the same model, with the same length of context."""

    def generate(
        self, prompts: list[str], sampling_params: list[SamplingParams], *, use_tqdm: bool
    ) -> list[RequestOutput]:
        """As that of LLM."""
