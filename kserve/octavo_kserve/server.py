"""OctavoServer: kserve.ModelServer with a lifecycle of its own, from the first probe to a drain that loses nothing.

Knows ports, signals and the order in which things end; no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Sequence
from typing import Any

import kserve.model_server as model_server
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.rest.server import RESTServer
from prometheus_client import REGISTRY

import octavo
from octavo_kserve.access import ApiKeys
from octavo_kserve.application import FixedRepository, OctavoDataPlane, mount
from octavo_kserve.connection import header_limited
from octavo_kserve.grpc_server import GrpcServer
from octavo_kserve.lifecycle import Lifecycle
from octavo_kserve.metrics import EngineCollector
from octavo_kserve.options import ModelOptions, Options
from octavo_kserve.predictor import OctavoModel
from octavo_kserve.served_model import Models, ServedModel

logger = logging.getLogger(__name__)

# For handlers to send their last words after their requests were ended.
LAST_WORDS_S = 5.0


class OctavoRESTServer(RESTServer):
    """The SDK's uvicorn, on our address and with our application; signals are not its business."""

    def __init__(self, server: OctavoServer) -> None:
        sdk = server.options.sdk
        super().__init__(
            model_server.FASTAPI_APP_IMPORT_STRING,
            server.dataplane,
            server.model_repository_extension,
            server.http_port,
            access_log_format=sdk.access_log_format,
            grace_period=int(server.options.drain_timeout_s + LAST_WORDS_S) + 1,
            event_loop=sdk.event_loop,
            timeout_keep_alive=sdk.timeout_keep_alive,
            ssl_certfile=server.ssl_certfile,
            ssl_keyfile=server.ssl_keyfile,
        )
        self._lifecycle, self._options = server.lifecycle, server.options
        self.config.host = server.options.host
        self.config.http = header_limited(server.options.max_header_bytes)
        self._server.capture_signals = contextlib.nullcontext

    def create_application(self) -> None:
        """Called once, when serving begins."""
        mount(model_server.app, self._lifecycle, self.dataplane, self._options)

    def close(self) -> None:
        """Takes no more connections; `start` returns when those that are open have ended."""
        self._server.should_exit = True


class OctavoServer(model_server.ModelServer):
    """All models of the command line in one process. `failure` is why it ended, if nobody asked it to."""

    def __init__(self, options: Options) -> None:
        # Also where the SDK looks for what its constructor does not take.
        model_server.args = sdk = options.sdk
        super().__init__(
            http_port=sdk.http_port,
            grpc_port=sdk.grpc_port,
            max_asyncio_workers=sdk.max_asyncio_workers,
            enable_grpc=sdk.enable_grpc,
            enable_latency_logging=False,
            access_log_format=sdk.access_log_format,
            event_loop=sdk.event_loop,
            ssl_certfile=sdk.ssl_certfile,
            ssl_keyfile=sdk.ssl_keyfile,
        )
        self.options = options
        self.lifecycle = Lifecycle(Models())
        self.dataplane = OctavoDataPlane(self.lifecycle, self.registered_models)
        self.model_repository_extension = FixedRepository(self.registered_models)
        self.failure: BaseException | None = None
        REGISTRY.register(EngineCollector(self.lifecycle.models))

    def create_models(self) -> list[OctavoModel]:
        """Starts to load all models, side by side. Raises ModelLoadError for what can be seen at once."""
        return [self._create_model(each) for each in self.options.models]

    def _create_model(self, options: ModelOptions) -> OctavoModel:
        served = ServedModel(options.name, octavo.AsyncEngine(options.engine), int(time.time()), options.aliases)
        self.lifecycle.models.add(served)
        model = OctavoModel(served, self.lifecycle)
        model.load()
        return model

    def start(self, models: Sequence[OctavoModel]) -> None:
        """Serves until somebody asks for the end or an engine is dead for good."""
        for model in models:
            model.start()
            for name in model.served.names:
                self.register_model(model, name)
        self._rest_server = OctavoRESTServer(self)
        with asyncio.Runner(loop_factory=self._rest_server.config.get_loop_factory()) as runner:
            runner.run(self._run(models))

    def stop(self, sig: int = signal.SIGTERM) -> None:
        """Begins the drain. A person's Ctrl-C need not wait for a router to notice; asked twice, nothing waits."""
        if self._stopping.is_set():
            self._hurry.set()
        elif sig == signal.SIGINT:
            self._closing.set()
        self._stopping.set()

    async def _run(self, models: Sequence[OctavoModel]) -> None:
        self._stopping, self._closing, self._hurry = asyncio.Event(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self.stop, sig)
        self._grpc_server = self._create_grpc_server() if self.enable_grpc else None
        starts = [self._rest_server.start()]
        if self._grpc_server is not None:
            starts.append(self._grpc_server.start())
        listeners = [asyncio.create_task(start) for start in starts]
        engines = [asyncio.create_task(model.start_engine()) for model in models]
        asked = asyncio.create_task(self._stopping.wait())
        try:
            await self._until_the_end([asked, *engines, *listeners])
            await self._drain(listeners)
        finally:
            self.lifecycle.draining = True
            asked.cancel()
            await self._shut_down()

    async def _until_the_end(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        """Returns when the first of the tasks has: none should before somebody asks for it."""
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            self.failure = self.failure or task.exception()
        if self.failure is not None:
            logger.error("the server stops: %s", self.failure)
            self._closing.set()

    async def _drain(self, listeners: Sequence[asyncio.Task[Any]]) -> None:
        """Probes say no at once, while requests are still taken from whoever has not asked them yet; then none are."""
        options = self.options
        self.lifecycle.draining = True
        logger.info("draining: not ready any more")
        await _wait_any([self._closing, self._hurry], options.drain_delay_s)
        logger.info("draining: requests have %g s to end", options.drain_timeout_s)
        self._rest_server.close()
        closing = list(listeners)
        if self._grpc_server is not None:
            grace_s = options.drain_timeout_s + LAST_WORDS_S
            closing.append(asyncio.create_task(self._grpc_server.stop(grace_s)))
        hurry = asyncio.create_task(self._hurry.wait())
        ended = asyncio.create_task(asyncio.wait(closing))
        await asyncio.wait({hurry, ended}, timeout=options.drain_timeout_s, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not ended.done():
            logger.warning("draining: the requests that are left are cancelled")
            await self._shut_down()
            await asyncio.wait({ended}, timeout=LAST_WORDS_S)

    async def _shut_down(self) -> None:
        """Ends every request and every engine process."""
        await asyncio.gather(*(asyncio.to_thread(model.engine.shutdown, 0) for model in self.lifecycle.models))

    def _create_grpc_server(self) -> GrpcServer:
        options = self.options
        address = f"{f'[{options.host}]' if ':' in options.host else options.host}:{self.grpc_port}"
        servicer = InferenceServicer(self.dataplane, self.model_repository_extension)
        size = options.sdk.grpc_max_receive_message_length
        return GrpcServer(address, servicer, ApiKeys(options.api_keys), size)


async def _wait_any(events: Sequence[asyncio.Event], timeout_s: float) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
