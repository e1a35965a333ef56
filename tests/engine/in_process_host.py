"""InProcessHost: an AsyncEngine as the conformance suite sees a host, without a server between."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from octavo import (
    AsyncEngine,
    DeadlineExceeded,
    EngineDead,
    OctavoError,
    Overloaded,
    RequestError,
    RequestOutput,
    RequestStream,
    SamplingParams,
)
from octavo.testing import Answer, Ask, ErrorKind, HostError, HostFacts, Load, Piece

KINDS = {
    Overloaded: ErrorKind.OVERLOADED,
    DeadlineExceeded: ErrorKind.DEADLINE,
    RequestError: ErrorKind.INVALID,
    EngineDead: ErrorKind.UNAVAILABLE,
}
STOP_TIMEOUT_S = 60


class InProcessHost:
    """Owns no state but that of its end."""

    def __init__(self, engine: AsyncEngine, facts: HostFacts) -> None:
        self.engine = engine
        self.facts = facts
        self._end = threading.Thread(target=engine.shutdown)

    def generate(self, ask: Ask) -> Answer:
        try:
            first, *rest = self.submit(ask)
        except OctavoError as error:
            raise told(error) from error
        for output in rest:
            first.extend(output)
        return Answer(
            texts=tuple(completion.text for completion in first.outputs),
            finish_reasons=tuple(str(completion.finish_reason) for completion in first.outputs),
            num_prompt_tokens=first.usage.num_prompt_tokens,
            num_output_tokens=first.usage.num_output_tokens,
        )

    @contextmanager
    def stream(self, ask: Ask) -> Iterator[Iterator[Piece]]:
        try:
            stream = self.submit(ask)
        except OctavoError as error:
            raise told(error) from error
        try:
            yield self.pieces(stream)
        finally:
            stream.cancel()

    def load(self) -> Load:
        stats = self.engine.stats()
        return Load(
            num_running=stats.num_requests_running,
            num_waiting=stats.num_requests_waiting,
            kv_cache_usage=stats.kv_cache_usage,
        )

    def engine_pids(self) -> list[int]:
        return [] if self.engine.engine_pid is None else [self.engine.engine_pid]

    def terminate(self) -> None:
        self._end.start()

    def wait(self) -> int:
        self._end.join(STOP_TIMEOUT_S)
        return int(self._end.is_alive())

    def submit(self, ask: Ask) -> RequestStream:
        if ask.model is not None:
            raise HostError(ErrorKind.NOT_FOUND, f"there is no {ask.model}")
        params = SamplingParams.from_mapping(ask.parameters)
        return self.engine.submit(ask.prompt, params, deadline_s=ask.deadline_s)

    def pieces(self, stream: RequestStream) -> Iterator[Piece]:
        try:
            for output in stream:
                yield piece_of(output)
        except OctavoError as error:
            raise told(error) from error


def told(error: OctavoError) -> HostError:
    return HostError(next(kind for cls, kind in KINDS.items() if isinstance(error, cls)), str(error))


def piece_of(output: RequestOutput) -> Piece:
    return Piece(
        texts={completion.index: completion.text for completion in output.outputs},
        finish_reasons={
            completion.index: str(completion.finish_reason)
            for completion in output.outputs
            if completion.finish_reason is not None
        },
        num_prompt_tokens=output.usage.num_prompt_tokens,
        num_output_tokens=sum(len(completion.token_ids) for completion in output.outputs),
    )
