"""The engine process: `python -m octavo.engine_process --fd N`. Loads the model, then drain inbox -> step -> send.

Ends at once when the front ends, however it ended. Knows no text; logs to stderr.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading

from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.errors import InvalidRequest, OctavoError, RequestError
from octavo.outputs import EngineOutput, FinishReason
from octavo.request import EngineRequest
from octavo.wire import (
    Abort,
    Beat,
    Connection,
    Hello,
    LoadFailed,
    Progress,
    Ready,
    Shutdown,
    Start,
    Step,
    Submit,
    ToEngine,
    UseVocabulary,
    wire_version,
)

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LONGEST_BEAT_S = 1.0


class EngineServer:
    """Runs an engine for the front at the other end of `connection`. Owns both."""

    def __init__(self, engine: Engine, connection: Connection[ToEngine]) -> None:
        self._engine = engine
        self._connection = connection
        # Several beats fit into the silence that counts as hung.
        self._beat_s = min(_LONGEST_BEAT_S, engine.config.step_timeout_s / 4)
        self._refused: list[EngineOutput] = []
        self._stopping = False

    def run(self) -> None:
        """Serves until told to stop. Raises EOFError or ConnectionError when the front is gone."""
        while not self._stopping:
            self._drain_inbox()
            if self._engine.has_work or self._refused:
                refused, self._refused = self._refused, []
                outputs = self._engine.step()
                self._connection.send(Step(refused + outputs, self._engine.stats()))
            else:
                self._connection.send(Beat())

    def _drain_inbox(self) -> None:
        """Handles what has come; with nothing to compute or to make ready it waits for it, up to the next beat."""
        is_busy = self._engine.has_work or self._engine.make_ready()
        if self._connection.wait(0 if is_busy else self._beat_s):
            for message in self._connection.read():
                self._handle(message)

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Submit(request):
                self._add(request)
            case UseVocabulary(vocabulary):
                self._engine.gate.use(vocabulary)
            case Abort(request_id, index, reason):
                self._engine.abort(request_id, index, reason)
            case Shutdown():
                self._stopping = True
            case Start():
                logger.error("asked to start twice; ignored")

    def _add(self, request: EngineRequest) -> None:
        """Whatever is wrong with a request fails that request alone."""
        try:
            self._engine.add_request(request)
        except RequestError as error:
            parameter = error.parameter if isinstance(error, InvalidRequest) else ""
            self._refuse(request, FinishReason.REJECTED, _encodable(str(error)), parameter)
        except Exception:
            logger.exception("request %s broke while it was added", request.request_id)
            self._refuse(request, FinishReason.ERROR, "internal error while the request was added")

    def _refuse(self, request: EngineRequest, reason: FinishReason, error: str, parameter: str = "") -> None:
        self._refused += [
            EngineOutput(
                request_id=request.request_id,
                index=index,
                token_ids=[],
                finish_reason=reason,
                error=error,
                parameter=parameter,
            )
            for index in range(request.params.n)
        ]


def load(config: EngineConfig, connection: Connection[ToEngine]) -> Engine | None:
    """Builds the engine and tells the front how far it is; None after telling it why that failed."""

    def on_progress(phase: str, fraction: float) -> None:
        connection.send(Progress(phase, fraction))

    try:
        return Engine.from_config(config, on_progress)
    except OctavoError as error:
        message = str(error)
    except Exception as error:
        logger.exception("the model could not be loaded")
        message = f"{type(error).__name__}: {error}"
    connection.send(LoadFailed(_encodable(message)))
    return None


def serve(connection: Connection[ToEngine]) -> int:
    """The whole life of an engine process; returns its exit status."""
    connection.send(Hello(wire_version()))
    while not (messages := connection.read() if connection.wait(_LONGEST_BEAT_S) else []):
        pass
    start = messages[0]
    assert isinstance(start, Start), "the front says first what to start"
    engine = load(start.config, connection)
    if engine is None:
        return 1
    # What loading left behind stays for good: the collector need not walk it in the middle of a step.
    gc.collect()
    gc.freeze()
    # Last of all: who hears it may send the first request at once.
    connection.send(Ready(engine.stats(), engine.config))
    EngineServer(engine, connection).run()
    engine.shutdown()
    return 0


def end_with_the_front(fd: int) -> None:
    """Ends this process when the front ends, in whatever step or phase of loading it is."""
    # The kernel's signal comes even while native code holds the interpreter lock; the thread sees the socket's end
    # even when the thread that started us is not the one that died.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_exit_on_hang_up, args=(fd,), name="octavo-watch", daemon=True).start()


def _exit_on_hang_up(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    poll.poll()
    os._exit(1)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def main() -> int:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="octavo.engine_process")
    parser.add_argument("--fd", type=int, required=True, help="an inherited socket to the front")
    fd = parser.parse_args().fd
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format=f"[octavo engine {os.getpid()}] %(levelname)s %(name)s: %(message)s")
    # The front decides when to end; a signal to the whole group must not cut its drain short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_the_front(fd)
    connection: Connection[ToEngine] = Connection(socket.socket(fileno=fd), ToEngine)
    try:
        return serve(connection)
    except (EOFError, ConnectionError):
        return 1


if __name__ == "__main__":
    sys.exit(main())
