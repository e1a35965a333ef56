"""OctavoServer: kserve.ModelServer with a lifecycle of its own, from the first probe to a drain that loses nothing.

Knows ports, signals and the order in which things end; no request.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kserve.model_server as model_server
from kserve.protocol.grpc.servicer import InferenceServicer
from kserve.protocol.rest.server import RESTServer
from prometheus_client import REGISTRY, start_http_server

import octavo
from octavo_kserve.access import ApiKeys
from octavo_kserve.application import OctavoDataPlane, mount
from octavo_kserve.connection import header_limited
from octavo_kserve.grpc_server import GrpcServer, tls_credentials
from octavo_kserve.lifecycle import Lifecycle
from octavo_kserve.log import format_access_log
from octavo_kserve.metrics import EngineCollector
from octavo_kserve.model_store import ModelStore
from octavo_kserve.options import Options
from octavo_kserve.repository import Repository
from octavo_kserve.served_model import Models

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
            server.repository,
            server.http_port,
            grace_period=int(server.options.drain_timeout_s + LAST_WORDS_S) + 1,
            event_loop=sdk.event_loop,
            timeout_keep_alive=sdk.timeout_keep_alive,
            ssl_certfile=server.ssl_certfile,
            ssl_keyfile=server.ssl_keyfile,
        )
        self._lifecycle, self._repository, self._options = server.lifecycle, server.repository, server.options
        self.config.host = server.options.host
        self.config.http = header_limited(server.options.max_header_bytes)
        self._server.capture_signals = contextlib.nullcontext

    def create_application(self) -> None:
        """Called once, when serving begins."""
        mount(model_server.app, self._lifecycle, self.dataplane, self._repository, self._options)

    async def start(self) -> None:
        """Serves until it is closed. Raises InvalidRequest when nothing can listen on the address."""
        try:
            await super().start()
        except SystemExit:
            # uvicorn's way to say it; its log has the reason.
            raise octavo.InvalidRequest(
                "http_port", self.config.port, f"one that is free on {self.config.host}"
            ) from None

    def close(self) -> None:
        """Takes no more connections; `start` returns when those that are open have ended."""
        self._server.should_exit = True


class OctavoServer(model_server.ModelServer):
    """All models in one process. `failure` is why it ended, if nobody asked it to."""

    def __init__(self, options: Options) -> None:
        """Raises InvalidRequest for what only the SDK, or a look at the disk, can tell to be wrong."""
        # Also where the SDK looks for what its constructor does not take.
        model_server.args = sdk = options.sdk
        super().__init__(
            http_port=sdk.http_port,
            grpc_port=sdk.grpc_port,
            max_asyncio_workers=sdk.max_asyncio_workers,
            enable_grpc=sdk.enable_grpc,
            enable_latency_logging=False,
            event_loop=sdk.event_loop,
            ssl_certfile=sdk.ssl_certfile,
            ssl_keyfile=sdk.ssl_keyfile,
        )
        self.options = options
        self.lifecycle = Lifecycle(Models())
        self.dataplane = OctavoDataPlane(self.lifecycle)
        store = None if options.model_store is None else ModelStore(options.model_store, options.engine_arguments)
        self.repository = Repository(self.lifecycle, options.models, store, options.drain_timeout_s)
        if sdk.access_log_format is not None:
            format_access_log(sdk.access_log_format)
        self.failure: BaseException | None = None
        REGISTRY.register(EngineCollector(self.lifecycle.models))

    def start(self, models: Sequence[object] = ()) -> None:
        """Serves the models of the options until somebody asks for the end or an engine is dead for good.

        Raises ModelLoadError for what can be seen at once.
        """
        self._rest_server = OctavoRESTServer(self)
        loop_factory = self._rest_server.config.get_loop_factory()
        with self._metrics_listener(), asyncio.Runner(loop_factory=loop_factory) as runner:
            # To look through all that was imported takes a tenth of a second, in which no stream would go on.
            gc.freeze()
            runner.run(self._run())

    def stop(self, sig: int = signal.SIGTERM) -> None:
        """Begins the drain. A person's Ctrl-C need not wait for a router to notice; asked twice, nothing waits."""
        if self._stopping.is_set():
            self._hurry.set()
        elif sig == signal.SIGINT:
            self._closing.set()
        self._stopping.set()

    async def _run(self) -> None:
        self._stopping, self._closing, self._hurry = asyncio.Event(), asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(self.max_asyncio_workers, "octavo-requests"))
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self.stop, sig)
        watch = asyncio.create_task(self.lifecycle.watch())
        asked = asyncio.create_task(self._stopping.wait())
        try:
            self.repository.load_all()
            listeners = self._listen()
            await self._until_the_end([asked, watch, *listeners])
            await self._drain(listeners)
        finally:
            self.lifecycle.draining = True
            asked.cancel()
            await self.repository.shut_down()

    def _listen(self) -> list[asyncio.Task[None]]:
        """Opens the ports. Raises InvalidRequest when that of gRPC cannot be had."""
        self._grpc_server = self._create_grpc_server() if self.enable_grpc else None
        starts = [self._rest_server.start()]
        if self._grpc_server is not None:
            starts.append(self._grpc_server.start())
        return [asyncio.create_task(start) for start in starts]

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
            await self.repository.shut_down()
            await asyncio.wait({ended}, timeout=LAST_WORDS_S)

    @contextlib.contextmanager
    def _metrics_listener(self) -> Iterator[None]:
        """A port of its own for scrapers, which have no keys. Raises InvalidRequest when it cannot be had."""
        port = self.options.metrics_port
        if port is None:
            yield
            return
        try:
            listener, _ = start_http_server(port, self.options.host)
        except OSError as error:
            raise octavo.InvalidRequest("metrics_port", port, f"a port to listen on ({error.strerror})") from None
        logger.info("metrics, without keys, on %s:%d", self.options.host, port)
        try:
            yield
        finally:
            listener.shutdown()

    def _create_grpc_server(self) -> GrpcServer:
        options = self.options
        address = f"{f'[{options.host}]' if ':' in options.host else options.host}:{self.grpc_port}"
        servicer = InferenceServicer(self.dataplane, self.repository)
        limits = options.sdk.grpc_max_send_message_length, options.sdk.grpc_max_receive_message_length
        credentials = tls_credentials(self.ssl_certfile, self.ssl_keyfile)
        try:
            return GrpcServer(address, servicer, ApiKeys(options.api_keys), limits, credentials)
        except RuntimeError:
            raise octavo.InvalidRequest("grpc_port", self.grpc_port, f"one that is free on {options.host}") from None


async def _wait_any(events: Sequence[asyncio.Event], timeout_s: float) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
