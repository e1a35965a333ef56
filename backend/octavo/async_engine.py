"""AsyncEngine: what hosts see. Requests go in from any thread; streams of text come out.

The engine itself runs in a process of its own, see FrontLoop. Knows no HTTP and no host.
"""

from __future__ import annotations

import atexit
import itertools
import os
import time
import uuid
import weakref
from dataclasses import replace
from functools import partial

from octavo.admission import Admission, Ticket
from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig, resolve
from octavo.front_loop import FrontLoop
from octavo.live_request import LiveRequest
from octavo.live_table import LiveTable, State
from octavo.parsing import parse_float, parse_text
from octavo.pooling_params import PoolingParams
from octavo.prompt import Prompt
from octavo.request_stream import RequestStream
from octavo.sampling_params import SamplingParams
from octavo.stats import EngineStats
from octavo.text.chat_format import open_chat_format
from octavo.text.tokenizer import open_tokenizer

_EXIT_TIMEOUT_S = 10.0
_SHORTEST_DEADLINE_S = 0.001

_loops: weakref.WeakSet[FrontLoop] = weakref.WeakSet()


class AsyncEngine:
    """One model, served by one engine process that is watched, restarted and resumed. Any thread may use it.

    One that is forgotten stops when its last stream has ended, at the latest when the interpreter exits.
    """

    def __init__(self, config: EngineConfig) -> None:
        """Starts loading the model and returns; `wait_ready` tells how that went.

        Raises ModelLoadError at once for what can be seen without loading.
        """
        checkpoint = open_checkpoint(config.model)
        resolved = resolve(config, checkpoint)
        self._table = LiveTable(resolved)
        # The engine process resolves the rest on its own: it sees the device.
        self._loop = FrontLoop(replace(config, model=os.path.abspath(checkpoint.path)), self._table)
        _loops.add(self._loop)
        weakref.finalize(self, self._loop.stop_soon).atexit = False
        # This takes about as long as the process needs to start.
        self.tokenizer = open_tokenizer(checkpoint, config.tokenizer)
        self.chat_format = open_chat_format(resolved, self.tokenizer.chat_template)
        self._admission = Admission(checkpoint, self.tokenizer, resolved)
        self._numbers = itertools.count()

    @property
    def config(self) -> EngineConfig:
        """The settings without open questions; those that depend on the device are final once it is ready."""
        return self._table.config

    @property
    def scores_pairs(self) -> bool:
        """Whether the model is a cross-encoder: it makes one score of a TextPair, and nothing of any other prompt."""
        return self._admission.scores_pairs

    @property
    def engine_pid(self) -> int | None:
        """The engine process, for debuggers and tests; None before it is started."""
        return self._loop.pid

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Waits until the model is loaded. Raises ModelLoadError, EngineDead, or TimeoutError."""
        self._table.wait_ready(timeout_s)

    def is_ready(self) -> bool:
        """Whether a request would run now: loaded, not draining, neither dead nor hung."""
        return self._table.state is State.READY and not self._table.draining and not self._loop.is_hung

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | PoolingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        cache_salt: str = "",
    ) -> RequestStream:
        """Takes a request: a text, token ids, or chat messages for the model's template.

        With SamplingParams it is completed; with PoolingParams its vector comes, in one output. A model serves one of
        the two, see `config.runner`; one that `scores_pairs` takes a TextPair, and its vector is the score alone. A
        lower `priority` runs first. After `deadline_s` seconds from now the request ends with DeadlineExceeded. Only
        requests of equal `cache_salt` share cached prefixes. A reader that leaves early calls `cancel` on the stream,
        or the request runs to its end. Raises InvalidRequest, PromptTooLong, Overloaded, EngineDead.
        """
        params = params or SamplingParams()
        num_sequences = params.n if isinstance(params, SamplingParams) else 1
        request_id = uuid.uuid4().hex if request_id is None else parse_text("request_id", request_id)
        now = time.monotonic()
        self._table.check_room(request_id, num_sequences)
        ticket = Ticket(request_id, next(self._numbers), priority, cache_salt)
        # The engine may have cut the context to what its KV cache can hold.
        self._admission.max_model_len = self.config.max_model_len or self._admission.max_model_len
        request, text = self._admission.prepare(ticket, prompt, params)
        stream = RequestStream(request_id, partial(self._cancel, request.request_id))
        live = LiveRequest(self._admission.tokenizer_for(prompt), request, text, stream, now)
        if deadline_s is not None:
            live.deadline = now + parse_float("deadline_s", deadline_s, _SHORTEST_DEADLINE_S)
        self._table.add(live)
        self._loop.submit(live)
        return stream

    def tokenize(self, prompt: Prompt) -> list[int]:
        """The token ids that `submit` would make of `prompt`. Raises InvalidRequest, PromptTooLong."""
        return self._admission.tokenize(prompt)

    def stats(self) -> EngineStats:
        """The counters, over all engine processes so far, and the gauges as of the last step."""
        return self._table.snapshot()

    def shutdown(self, drain_s: float = 30.0) -> None:
        """Takes no more requests, waits up to `drain_s` seconds for the live ones, cancels the rest, ends the process.

        May be called more than once.
        """
        self._table.drain(drain_s)
        self._loop.stop_soon()
        self._loop.join()

    def _cancel(self, wire_id: str) -> None:
        # A method, so that a stream somebody reads keeps its engine alive.
        self._loop.cancel(wire_id)


@atexit.register
def _stop_all() -> None:
    """No engine process outlives the interpreter, and none keeps it from exiting."""
    loops = list(_loops)
    for loop in loops:
        loop.stop_soon()
    for loop in loops:
        loop.join(_EXIT_TIMEOUT_S)
