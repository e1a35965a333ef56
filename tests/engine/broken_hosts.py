"""Hosts with one fault each: what the conformance suite has to find."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from engine.in_process_host import InProcessHost

from octavo import AsyncEngine, OctavoError, RequestStream
from octavo.testing import Answer, Ask, ErrorKind, HostError, HostFacts, Piece


class BrokenHost(InProcessHost):
    """Only says that it ends. Remembers its requests, so that none is left behind."""

    def __init__(self, engine: AsyncEngine, facts: HostFacts) -> None:
        super().__init__(engine, facts)
        self.streams: list[RequestStream] = []
        self.stopping = threading.Event()

    def submit(self, ask: Ask) -> RequestStream:
        if self.stopping.is_set():
            raise HostError(ErrorKind.UNAVAILABLE, "stopping")
        self.streams.append(super().submit(ask))
        return self.streams[-1]

    def cancel_all(self) -> None:
        for stream in self.streams:
            stream.cancel()

    def terminate(self) -> None:
        self.stopping.set()

    def wait(self) -> int:
        return 0


class LosesTheLastText(BrokenHost):
    def pieces(self, stream: RequestStream) -> Iterator[Piece]:
        for piece in super().pieces(stream):
            yield replace(piece, texts={}) if piece.finish_reasons else piece


class EndsTwice(BrokenHost):
    def pieces(self, stream: RequestStream) -> Iterator[Piece]:
        yield from super().pieces(stream)
        yield Piece(finish_reasons={0: "stop"})


class EndsWithoutAReason(BrokenHost):
    def pieces(self, stream: RequestStream) -> Iterator[Piece]:
        for piece in super().pieces(stream):
            yield replace(piece, finish_reasons={})


class GoesOnAfterTheEnd(BrokenHost):
    def pieces(self, stream: RequestStream) -> Iterator[Piece]:
        yield from super().pieces(stream)
        yield Piece(texts={0: "!"})


class MiscountsTheWhole(BrokenHost):
    def generate(self, ask: Ask) -> Answer:
        answer = super().generate(ask)
        return replace(answer, num_output_tokens=answer.num_output_tokens + 1)


class MiscountsTheStream(BrokenHost):
    def pieces(self, stream: RequestStream) -> Iterator[Piece]:
        yield from super().pieces(stream)
        yield Piece(num_output_tokens=1)


class KeepsTheText(BrokenHost):
    def pieces(self, stream: RequestStream) -> Iterator[Piece]:
        pieces = list(super().pieces(stream))
        text = "".join(piece.texts.get(0, "") for piece in pieces)
        count = sum(piece.num_output_tokens for piece in pieces)
        yield replace(pieces[-1], texts={0: text}, num_output_tokens=count)


class IgnoresTheSeed(BrokenHost):
    def submit(self, ask: Ask) -> RequestStream:
        return super().submit(replace(ask, parameters={**ask.parameters, "seed": None}))


class DependsOnBatchMates(BrokenHost):
    num_live = 0

    def generate(self, ask: Ask) -> Answer:
        self.num_live += 1
        try:
            alone = self.num_live == 1
            return super().generate(ask if alone else replace(ask, parameters={**ask.parameters, "seed": 99}))
        finally:
            self.num_live -= 1


class SaysOtherwise(BrokenHost):
    def generate(self, ask: Ask) -> Answer:
        try:
            return super().generate(ask)
        except HostError as error:
            raise HostError(error.kind, "Bad request") from error


class SaysOtherwiseOnStreams(BrokenHost):
    @contextmanager
    def stream(self, ask: Ask) -> Iterator[Iterator[Piece]]:
        try:
            stream = self.submit(ask)
        except OctavoError as error:
            raise HostError(None, "Bad request") from error
        yield self.pieces(stream)


class TakesWhatIsWrong(BrokenHost):
    def submit(self, ask: Ask) -> RequestStream:
        try:
            return super().submit(ask)
        except OctavoError:
            return super().submit(Ask("x", {}))


class TellsAnotherKind(BrokenHost):
    def generate(self, ask: Ask) -> Answer:
        try:
            return super().generate(ask)
        except HostError as error:
            raise HostError(ErrorKind.UNAVAILABLE, error.text) from error


class AnswersToEveryName(BrokenHost):
    def submit(self, ask: Ask) -> RequestStream:
        return super().submit(replace(ask, model=None))


class FailsTogether(BrokenHost):
    def submit(self, ask: Ask) -> RequestStream:
        try:
            return super().submit(ask)
        except OctavoError:
            self.cancel_all()
            raise


class OverlooksThatAClientLeft(BrokenHost):
    @contextmanager
    def stream(self, ask: Ask) -> Iterator[Iterator[Piece]]:
        yield self.pieces(self.submit(ask))


class EndsOthersToo(BrokenHost):
    @contextmanager
    def stream(self, ask: Ask) -> Iterator[Iterator[Piece]]:
        yield self.pieces(self.submit(ask))
        self.cancel_all()


class HidesErrorsOnStreams(BrokenHost):
    def pieces(self, stream: RequestStream) -> Iterator[Piece]:
        try:
            yield from super().pieces(stream)
        except HostError:
            yield Piece(finish_reasons={0: "stop"})


class LosesStreamsWithTheEngine(BrokenHost):
    def pieces(self, stream: RequestStream) -> Iterator[Piece]:
        pid = self.engine.engine_pid
        for piece in super().pieces(stream):
            if self.engine.engine_pid != pid:
                return
            yield piece


class EndsBadly(BrokenHost):
    def wait(self) -> int:
        return 1


class CutsStreams(BrokenHost):
    def pieces(self, stream: RequestStream) -> Iterator[Piece]:
        for piece in super().pieces(stream):
            if self.stopping.is_set():
                return
            yield piece


class TakesMoreThanItWillEnd(BrokenHost):
    def terminate(self) -> None:
        """Goes on as if nobody had asked."""
