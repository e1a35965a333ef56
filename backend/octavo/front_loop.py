"""FrontLoop: the one thread between the callers and the engine process.

It alone talks to the process, ends streams, keeps deadlines, and starts a new process when one dies or hangs, into
which it replays what is live. Reads no prompt and makes no text: that is LiveRequest's.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable
from functools import partial

import msgspec

from octavo.config import EngineConfig
from octavo.deadlines import Deadlines
from octavo.errors import (
    DeadlineExceeded,
    EngineDead,
    EngineError,
    InvalidRequest,
    ModelLoadError,
    OctavoError,
    PromptTooLong,
    RequestCancelled,
    RequestFailed,
)
from octavo.inbox import Inbox
from octavo.live_request import LiveRequest
from octavo.live_table import LiveTable, State
from octavo.outputs import EngineOutput, FinishReason
from octavo.stats import Observations
from octavo.supervisor import EngineProcess, RestartLimit, find_python
from octavo.wire import (
    Abort,
    FromEngine,
    Hello,
    LoadFailed,
    Progress,
    Ready,
    Start,
    Step,
    Submit,
    UseVocabulary,
    wire_version,
)

logger = logging.getLogger(__name__)

_STOP_GRACE_S = 5.0
_LONGEST_WAIT_S = 1.0
# A request that ran at so many deaths in a row, without a token in between, is taken for their cause.
_MAX_DEATHS = 3
_ERRORS: dict[FinishReason, type[OctavoError]] = {
    FinishReason.ERROR: RequestFailed,
    # What the engine refuses without naming a parameter is the KV cache's size, which it alone knows.
    FinishReason.REJECTED: PromptTooLong,
    FinishReason.CANCELLED: RequestCancelled,
    FinishReason.DEADLINE: DeadlineExceeded,
}


class FrontLoop:
    """Owns the engine process and, with their table, the live requests. Public methods are for any thread.

    `heard_at` is when the process last gave a sign of life (seconds, monotonic).
    """

    def __init__(self, config: EngineConfig, table: LiveTable) -> None:
        """`config` is what the engine process is told; it resolves it for itself."""
        self.heard_at = time.monotonic()
        self._config = config
        self._table = table
        self._inbox = Inbox()
        self._deadlines = Deadlines(lambda wire_id: table.get(wire_id) is not None)
        self._limit = RestartLimit(config.max_restarts, config.restart_window_s)
        self._process: EngineProcess | None = None
        self._knows_vocabulary: EngineProcess | None = None
        self._said_hello = False
        self._was_ready = False
        self._load_error = ""
        self._progress: tuple[str, int] = "", 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="octavo-front", daemon=True)
        self._thread.start()

    @property
    def is_hung(self) -> bool:
        """Whether the engine process has been silent for too long; it is about to be killed."""
        return time.monotonic() - self.heard_at > self._silence_limit_s

    @property
    def pid(self) -> int | None:
        """The engine process, for tests and debuggers."""
        return self._process.pid if self._process is not None else None

    def submit(self, live: LiveRequest) -> None:
        """Takes over a request that is in the table."""
        self._inbox.post(partial(self._accept, live))

    def cancel(self, wire_id: str) -> None:
        """Ends a request as cancelled, unless it has ended."""
        self._inbox.post(partial(self._expire, wire_id, RequestCancelled))

    def stop_soon(self) -> None:
        """Ends everything, without waiting for it."""
        self._inbox.post(self._stop)

    def join(self, timeout_s: float | None = None) -> None:
        """Waits until everything has ended."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._start_process()
            while not self._stopping:
                self._turn()
        except EngineError as error:
            logger.error("giving up: %s", error)
            self._end_all(error, partial(EngineDead, str(error)))
        except Exception:
            logger.exception("the front thread broke")
            broken = EngineDead("internal error in front of the engine")
            self._end_all(broken, partial(EngineDead, str(broken)))
        finally:
            self._close()

    def _turn(self) -> None:
        """One round: wait, hear what came, act on it."""
        process = self._process
        assert process is not None
        now = self._wait(process)
        self._inbox.run_all()
        try:
            messages = process.connection.read()
        except EOFError:
            self._on_death(process.cause_of_death() if self._said_hello else process.why_it_did_not_start(), now)
            return
        except msgspec.DecodeError as error:
            self._on_death(f"sent what is no message of ours ({error})", now)
            return
        if messages:
            self.heard_at = now
        for message in messages:
            self._handle(message)
        for wire_id in self._deadlines.expired(now):
            self._expire(wire_id, DeadlineExceeded)
        if now - self.heard_at > self._silence_limit_s:
            self._on_death(f"gave no sign of life for {self._silence_limit_s:g} s", now)

    def _wait(self, process: EngineProcess) -> float:
        """Sends what is queued and waits until there is something to do. Returns the time."""
        everything_sent = process.connection.flush()
        poll = select.poll()
        poll.register(self._inbox, select.POLLIN)
        poll.register(process.connection, select.POLLIN if everything_sent else select.POLLIN | select.POLLOUT)
        now = time.monotonic()
        due = min(now + _LONGEST_WAIT_S, self.heard_at + self._silence_limit_s, self._deadlines.next)
        # A millisecond more: poll counts in whole ones, and waking before the time would only mean to wait again.
        poll.poll(max(due - now, 0) * 1000 + 1)
        woken = time.monotonic()
        if woken - due > _LONGEST_WAIT_S:
            # The machine, or this process, stood still: that was not the engine's silence.
            self.heard_at += woken - due
        return woken

    @property
    def _silence_limit_s(self) -> float:
        return self._config.step_timeout_s if self._table.state is State.READY else self._config.start_timeout_s

    def _handle(self, message: FromEngine) -> None:
        match message:
            case Step():
                self._on_step(message)
            case Hello(version):
                self._on_hello(version)
            case Progress(phase, fraction):
                self._log_progress(phase, fraction)
            case Ready(stats, config):
                logger.info("the engine is ready: %d KV blocks of %d tokens", stats.num_blocks, config.block_size)
                self._was_ready = True
                self._table.set_ready(config, stats)
                for live in self._table.all():
                    self._send(live)
            case LoadFailed(text):
                self._load_error = text

    def _log_progress(self, phase: str, fraction: float) -> None:
        """A line each quarter of a phase: enough for somebody who waits, and no flood in a server's log."""
        reached = phase, int(fraction * 4)
        if reached != self._progress:
            self._progress = reached
            logger.info("%s: %.0f%%", phase, fraction * 100)

    def _on_hello(self, version: str) -> None:
        assert self._process is not None
        self._said_hello = True
        if version != wire_version():
            raise ModelLoadError(
                f"the engine process runs another version of octavo (wire {version}) than this one "
                f"(wire {wire_version()}): install the same version for both interpreters"
            )
        self._process.connection.queue(Start(self._config))

    def _on_step(self, step: Step) -> None:
        """Turns one step's outputs into text and wakes each reader once."""
        touched: dict[str, LiveRequest] = {}
        failed: list[tuple[LiveRequest, OctavoError]] = []
        ends: list[FinishReason] = []
        seen = Observations()
        now = time.monotonic()
        for new in step.outputs:
            live = self._table.get(new.request_id)
            if live is None:
                continue
            if new.finish_reason in _ERRORS:
                failed.append((live, _error_of(new, new.finish_reason)))
                continue
            try:
                reason = self._push(live, new, now, seen)
            except Exception:
                logger.exception("the text of request %s broke", live.request_id)
                failed.append((live, RequestFailed("internal error while the text was made")))
                continue
            touched[live.wire_id] = live
            if reason is not None:
                ends.append(reason)
        self._table.count(step.stats, ends, seen)
        for live, error in failed:
            self._end(live, error)
        for live in touched.values():
            output = live.take_fresh()
            if output is not None and (not output.finished or self._table.remove(live)):
                live.stream.put(output, ended=output.finished)

    def _push(self, live: LiveRequest, new: EngineOutput, now: float, seen: Observations) -> FinishReason | None:
        """How the completion ended, if it did."""
        output = live.push(new, now, seen)
        if output is None:
            return None
        if output.finish_reason is not None and new.finish_reason is None:
            # A stop string: the engine cannot see it.
            self._abort(live, new.index, output.finish_reason)
        return output.finish_reason

    def _accept(self, live: LiveRequest) -> None:
        if live.deadline is not None:
            self._deadlines.add(live.deadline, live.wire_id)
        self._send(live)

    def _send(self, live: LiveRequest) -> None:
        """Hands a request to the engine process, once to each; one that is loading gets all when it is ready."""
        process = self._process
        ended = self._table.get(live.wire_id) is None
        if ended or process is None or self._table.state is not State.READY or live.sent_to is process:
            return
        live.sent_to = process
        try:
            if live.request.params.structured_outputs is not None and self._knows_vocabulary is not process:
                process.connection.queue(UseVocabulary(live.vocabulary))
                self._knows_vocabulary = process
            process.connection.queue(Submit(live.replay()))
        except (TypeError, ValueError, OverflowError) as error:
            logger.error("request %s cannot be sent: %s", live.request_id, error)
            self._end(live, RequestFailed("the request cannot be sent to the engine"))

    def _abort(self, live: LiveRequest, index: int | None, reason: FinishReason) -> None:
        if self._process is not None and live.sent_to is self._process:
            self._process.connection.queue(Abort(live.wire_id, index, reason))

    def _expire(self, wire_id: str, error: type[DeadlineExceeded | RequestCancelled]) -> None:
        live = self._table.get(wire_id)
        if live is not None:
            self._end(live, error())

    def _end(self, live: LiveRequest, error: OctavoError) -> None:
        """Ends a request by an error, here and in the engine, unless it has ended."""
        if not self._table.remove(live):
            return
        otherwise = FinishReason.REJECTED if isinstance(error, InvalidRequest) else FinishReason.ERROR
        reason = next((reason for reason, kind in _ERRORS.items() if type(error) is kind), otherwise)
        ends = [reason for _ in live.unfinished]
        seen = Observations()
        live.fail(time.monotonic(), seen)
        self._table.count(None, ends, seen)
        self._abort(live, None, reason)
        live.stream.put(live.take_fresh(), ended=True, error=error)

    def _end_all(self, failure: EngineError, error: Callable[[], OctavoError]) -> None:
        """Closes the table because of `failure`, and ends every live request by an error of its own."""
        self._table.set_dead(failure)
        for live in self._table.all():
            self._end(live, error())

    def _start_process(self) -> None:
        self.heard_at = time.monotonic()
        self._said_hello = False
        self._load_error = ""
        self._process = EngineProcess(find_python(self._config.engine_python))

    def _on_death(self, cause: str, now: float) -> None:
        """The engine process is gone or hung: starts another, or raises EngineError when there is no sense in that."""
        process = self._process
        assert process is not None
        process.kill()
        if not self._was_ready:
            raise ModelLoadError(self._load_error or f"the engine process {cause} (while it was loading)")
        logger.error("the engine process %s; %d requests are live", cause, len(self._table))
        suspects = self._suspects() if self._table.state is State.READY else []
        if suspects:
            self._limit.forgive()
        allowed = self._limit.allow(now)
        if allowed:
            # Before anybody is told: who sees a suspect fail and asks next must not be told that all is well.
            self._table.set_loading()
        for live in suspects:
            self._end(live, RequestFailed(f"the engine died {live.num_deaths} times while it ran this request"))
        if not allowed:
            raise EngineDead(
                f"the engine process {cause}, after {self._config.max_restarts} restarts within "
                f"{self._config.restart_window_s:g} s"
            )
        self._start_process()

    def _suspects(self) -> list[LiveRequest]:
        """One request that kills every process must take neither the queue nor the service with it.

        Only what can have been running is suspect: the first in rank, as many as may run.
        """
        by_rank = sorted(self._table.all(), key=lambda live: live.request.priority)
        running = by_rank[: self._table.config.max_num_seqs]
        for live in running:
            live.num_deaths += 1
        return [live for live in running if live.num_deaths >= _MAX_DEATHS]

    def _stop(self) -> None:
        self._stopping = True

    def _close(self) -> None:
        was_ready = self._table.state is State.READY
        text = "Request was cancelled: the engine is shutting down"
        self._end_all(EngineDead("the engine was shut down"), partial(RequestCancelled, text))
        if self._process is not None:
            if was_ready:
                self._process.stop(_STOP_GRACE_S)
            else:
                self._process.kill()


def _error_of(output: EngineOutput, reason: FinishReason) -> OctavoError:
    text = output.error or reason.value
    return InvalidRequest.worded(output.parameter, text) if output.parameter else _ERRORS[reason](text)
