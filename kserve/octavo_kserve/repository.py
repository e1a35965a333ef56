"""Repository: which models this server knows, and loading and unloading them while it runs.

Owns the engines from their start to their end. Knows no protocol: routes and gRPC hand it names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import octavo
from octavo_kserve.errors import UnknownModel
from octavo_kserve.lifecycle import WATCH_INTERVAL_S, Condition, Lifecycle, condition_of
from octavo_kserve.model_store import ModelStore
from octavo_kserve.options import ModelOptions
from octavo_kserve.served_model import ServedModel

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SHUTTING_DOWN = "the server is shutting down"


@dataclass(slots=True, eq=False)
class _Entry:
    """A model that has been named or loaded. The lock is held while its engine is made, and while it is ended."""

    options: ModelOptions
    served: ServedModel | None = None
    loading: asyncio.Task[None] | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    reason: str = ""
    """Why it is not loaded."""


class Repository:
    """Used from the server's event loop only. What takes long runs in threads of its own, so that requests go on."""

    def __init__(
        self, lifecycle: Lifecycle, models: Sequence[ModelOptions], store: ModelStore | None, drain_timeout_s: float
    ) -> None:
        self._lifecycle = lifecycle
        self._entries = {options.name: _Entry(options) for options in models}
        self._store = store
        self._drain_timeout_s = drain_timeout_s
        self._threads = ThreadPoolExecutor(thread_name_prefix="octavo-models")

    def load_all(self) -> None:
        """Starts to load the models of the command line, side by side. Raises what can be seen at once."""
        for entry in self._entries.values():
            entry.served = _start(entry.options)
            self._lifecycle.models.add(entry.served)

    async def load(self, model_name: str) -> dict[str, object]:
        """Returns when the model is warm. Who asks for one that is loading waits for the same.

        The load goes on when the client leaves. Raises UnknownModel, InvalidRequest, or why it could not be loaded.
        """
        if self._lifecycle.draining:
            raise octavo.EngineDead(_SHUTTING_DOWN)
        entry = self._entry(model_name)
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._load(entry))
            entry.loading.add_done_callback(partial(_forget, entry))
        await asyncio.shield(entry.loading)
        return {"name": model_name, "load": True}

    async def unload(self, model_name: str) -> dict[str, object]:
        """Takes no more requests for the model, lets those that run end within the drain limit, and ends its engine.

        Goes on when the client leaves. Raises UnknownModel; one that is not loaded need not be unloaded.
        """
        entry = self._entry(model_name)
        await asyncio.shield(asyncio.ensure_future(self._close(entry, "unloaded", self._drain_timeout_s)))
        return {"name": model_name, "unload": True}

    def index(self) -> list[dict[str, str]]:
        """Every model that could be served, in the words of the v2 protocol's repository extension."""
        stored = self._store.names() if self._store else []
        states = dict.fromkeys(stored, ("UNAVAILABLE", ""))
        states |= {name: (self._state(entry), entry.reason) for name, entry in self._entries.items()}
        return [
            {"name": name, "version": "1", "state": state, "reason": reason} for name, (state, reason) in states.items()
        ]

    async def shut_down(self) -> None:
        """Ends every request and every engine process, those of models that are being unloaded too."""
        loaded = [entry.served.engine for entry in self._entries.values() if entry.served is not None]
        await asyncio.gather(*(asyncio.to_thread(engine.shutdown, 0) for engine in loaded))

    def _entry(self, name: str) -> _Entry:
        for entry in self._entries.values():
            if name == entry.options.name or name in entry.options.aliases:
                return entry
        options = self._store.find(name) if self._store else None
        if options is None:
            raise UnknownModel(name)
        return self._entries.setdefault(name, _Entry(options))

    async def _load(self, entry: _Entry) -> None:
        served = None
        try:
            async with entry.lock:
                entry.reason = ""
                served = entry.served = entry.served or await self._open(entry.options)
            await self._until_warm(served)
        except octavo.OctavoError as error:
            logger.error("model %s cannot be loaded: %s", entry.options.name, error)
            # One of the command line takes the server with it.
            if served is None or served.on_request:
                await self._close(entry, str(error), drain_s=0, failed=served)
            raise

    async def _open(self, options: ModelOptions) -> ServedModel:
        """Starts the engine, and has requests told that the model is loading."""
        logger.info("model %s is loading, as somebody asked", options.name)
        served = await self._in_thread(lambda: _start(options, on_request=True))
        self._lifecycle.models.add(served)
        return served

    async def _until_warm(self, served: ServedModel) -> None:
        while True:
            try:
                served.engine.wait_ready(timeout_s=0)
                return
            except TimeoutError:
                if self._lifecycle.draining:
                    raise octavo.EngineDead(_SHUTTING_DOWN) from None
                await asyncio.sleep(WATCH_INTERVAL_S)

    async def _close(self, entry: _Entry, reason: str, drain_s: float, failed: ServedModel | None = None) -> None:
        """Ends the engine, if there is one; with `failed`, only that: somebody may have loaded the model anew."""
        async with entry.lock:
            served = entry.served
            if failed is not None and served is not failed:
                return
            entry.reason = reason
            if served is not None:
                # Who asks for the model from now on waits for another load than the one that is being ended.
                entry.loading = None
                self._lifecycle.models.remove(served.name)
                await self._in_thread(lambda: served.engine.shutdown(drain_s))
                entry.served = None
                logger.info("model %s is not loaded any more: %s", served.name, reason)

    def _state(self, entry: _Entry) -> str:
        if entry.served is None:
            return "LOADING" if entry.loading else "UNAVAILABLE"
        if self._lifecycle.models.get(entry.served.name) is not entry.served:
            return "UNLOADING"
        condition = condition_of(entry.served.engine)
        return {Condition.READY: "READY", Condition.LOADING: "LOADING"}.get(condition, "UNAVAILABLE")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _forget(entry: _Entry, loading: asyncio.Task[None]) -> None:
    """The load has ended: whoever still listens is told, the log was told anyway."""
    if entry.loading is loading:
        entry.loading = None
    if not loading.cancelled():
        loading.exception()


def _start(options: ModelOptions, on_request: bool = False) -> ServedModel:
    """Starts the engine process. While that loads, the model's template is compiled: no client shall wait for it."""
    engine = octavo.AsyncEngine(options.engine)
    # There may be no template, or one that refuses such a chat.
    with contextlib.suppress(octavo.RequestError):
        engine.tokenize([{"role": "user", "content": "?"}])
    return ServedModel(options.name, engine, int(time.time()), options.aliases, on_request)
