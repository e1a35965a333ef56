"""Everything that goes back to the server, from one thread.

The server dies or hangs when a request is polled after its FINAL response, when FINAL is never sent, or when an
exception ends the thread that should have sent it. Each is prevented here and nowhere else. Knows no tensor's meaning.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import triton_python_backend_utils as pb_utils

from octavo import OctavoError, RequestCancelled, RequestFailed, RequestOutput, RequestStream
from octavo.v2 import Encoder, Request, open_encoder
from octavo_triton.errors import error_reply

logger = logging.getLogger(__name__)

POLL_PERIOD_S = 0.08
MAX_POLL_PERIOD_S = 0.2
# A poll takes some 70 us of processor time, in the stub and in the server together, as much as half a response: this
# bounds polling to 5 % of the machine. With more requests than are due in a period, everybody waits longer.
MAX_POLLS_PER_CORE_S = 700
# How many are polled in a row while the others' responses wait: 1 ms.
POLL_SLICE = 32


def poll_pause_s(num_requests: int, num_cores: int, step_s: float) -> float:
    """Seconds between the starts of two slices, such that all of `num_requests` have their turn in one period.

    A cancelled request's blocks are freed between two steps, so asking more than once a step, which lasts `step_s`,
    frees nothing sooner.
    """
    num_slices = max(-(-num_requests // POLL_SLICE), 1)
    period_s = max(POLL_PERIOD_S, min(step_s, MAX_POLL_PERIOD_S), num_requests / (MAX_POLLS_PER_CORE_S * num_cores))
    return period_s / num_slices


@dataclass(slots=True, eq=False)
class Reply:
    """The way back of one request. After `finished` its response sender is never touched again.

    `stream` is None for a request that was refused with `error`. `streams` tells whether its client wants more than one
    response. `pending` has been taken from the stream but not been sent: all so far when not streaming, what shows
    nothing yet when streaming. `served_at` is when its stream last brought something (seconds, monotonic).
    """

    response_sender: Any
    encoder: Encoder | None = None
    stream: RequestStream | None = None
    streams: bool = False
    error: BaseException | None = None
    pending: RequestOutput | None = None
    served_at: float | None = None
    cancelling: bool = False
    finished: bool = False


class Sender:
    """One thread that sends all responses of a model and watches for clients that went away. Owns the replies."""

    def __init__(self, explain: Callable[[BaseException], BaseException] = lambda error: error) -> None:
        """`explain` turns an error into the one that the client is told."""
        self._explain = explain
        # Those that this process may use, as a container sets them.
        self._num_cores = len(os.sched_getaffinity(0))
        # As the gap between two outputs of one stream shows it.
        self._step_s = 0.0
        # In the order in which they are due to be polled.
        self._replies: OrderedDict[Reply, None] = OrderedDict()
        self._inbox: SimpleQueue[Reply | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="octavo-sender", daemon=True)
        self._thread.start()

    def add(self, response_sender: Any, request: Request, stream: RequestStream) -> None:
        """Takes over a request that was admitted: its client gets `stream`, to the end. Does not block."""
        reply = Reply(response_sender, open_encoder(request), stream, request.stream)
        # The first entry puts the reply under watch even if its stream has nothing to say for long.
        self._inbox.put(reply)
        stream.notify(lambda _: self._inbox.put(reply))

    def refuse(self, response_sender: Any, error: BaseException) -> None:
        """Takes over a request that was not admitted: its client gets `error`. Does not block."""
        self._inbox.put(Reply(response_sender, error=error))

    def close(self) -> None:
        """Sends what is there, then ends every reply that is still open and the thread. For when streams have ended."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        next_poll = 0.0
        while True:
            try:
                # Without replies there is nothing to poll, so the thread sleeps until something comes.
                timeout = max(next_poll - time.monotonic(), 0) if self._replies else None
                reply = self._inbox.get(timeout=timeout)
            except Empty:
                pass
            else:
                if reply is None:
                    break
                self._guard(reply, self._serve)
            now = time.monotonic()
            if now >= next_poll:
                self._poll_slice()
                next_poll = now + poll_pause_s(len(self._replies), self._num_cores, self._step_s)
        for reply in list(self._replies):
            self._guard(reply, self._serve)
            if not reply.finished:
                self._end(reply, RequestCancelled("Request was cancelled: the model is being unloaded"))

    def _guard(self, reply: Reply, act: Callable[[Reply], None]) -> None:
        """Whatever goes wrong with one reply ends this one and no other, and never this thread."""
        if reply.finished:
            return
        try:
            act(reply)
        except Exception as error:
            if reply.stream is not None:
                reply.stream.cancel()
            self._end(reply, error)

    def _serve(self, reply: Reply) -> None:
        self._replies.setdefault(reply)
        if reply.error is not None:
            raise reply.error
        assert reply.stream is not None and reply.encoder is not None
        try:
            output = reply.stream.take(timeout_s=0)
        except TimeoutError:
            return
        if output is None:
            raise RequestFailed("the request ended without its last output")
        now = time.monotonic()
        if reply.served_at is not None:
            self._step_s = now - reply.served_at
        reply.served_at = now
        if reply.pending is None:
            reply.pending = output
        else:
            reply.pending.extend(output)
        if reply.pending.finished or (reply.streams and reply.encoder.has_news(reply.pending)):
            arrays = reply.encoder.encode(reply.pending)
            tensors = [pb_utils.Tensor(name, array) for name, array in arrays.items()]
            self._send(reply, pb_utils.InferenceResponse(output_tensors=tensors), final=reply.pending.finished)
            reply.pending = None

    def _poll_slice(self) -> None:
        """Polls those that have not been polled for the longest time."""
        for reply in list(islice(self._replies, POLL_SLICE)):
            self._replies.move_to_end(reply)
            self._guard(reply, self._poll)

    def _poll(self, reply: Reply) -> None:
        if not reply.cancelling and reply.response_sender.is_cancelled():
            assert reply.stream is not None
            logger.info("[vllm] Cancelling the request %s", reply.stream.request_id)
            reply.cancelling = True
            reply.stream.cancel()

    def _end(self, reply: Reply, error: BaseException) -> None:
        """Tells the client how its request failed. Never raises: an exception here would end the thread."""
        try:
            if not isinstance(error, OctavoError):
                logger.error("a request failed inside the backend", exc_info=error)
            if reply.finished:
                return
            if reply.cancelling and isinstance(error, RequestCancelled) and reply.stream is not None:
                logger.info("[vllm] Successfully cancelled the request %s", reply.stream.request_id)
            told = error_reply(self._explain(error))
            triton_error = pb_utils.TritonError(told.text, getattr(pb_utils.TritonError, told.code))
            self._send(reply, pb_utils.InferenceResponse(output_tensors=[], error=triton_error), final=True)
        except Exception:
            logger.exception("the server did not take the end of a request")
            self._finish(reply)

    def _finish(self, reply: Reply) -> None:
        """FINAL with nothing else, for a reply whose error cannot be told: the client sees an end without a reason."""
        if not reply.finished:
            with contextlib.suppress(Exception):
                self._send(reply, None, final=True)

    def _send(self, reply: Reply, response: Any, final: bool) -> None:
        if final:
            # Before the call: even if it fails, nobody may poll or send on this response sender again.
            reply.finished = True
            self._replies.pop(reply, None)
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        if response is None:
            reply.response_sender.send(flags=flags)
        else:
            reply.response_sender.send(response, flags)
