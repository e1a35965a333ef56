"""A KServe server as the conformance suite sees a host, through each of its APIs: `generate` and OpenAI's.

The server runs in a process of its own; its SDK is not imported here.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import queue
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import openai
from kserve_server import KServeServer, children
from v2_events import Reader, request_of

from octavo.testing import Answer, Ask, ErrorKind, HostError, HostFacts, Load, Piece

WAIT_S = 60
KIND_OF_STATUS = {
    400: ErrorKind.INVALID,
    404: ErrorKind.NOT_FOUND,
    408: ErrorKind.DEADLINE,
    422: ErrorKind.INVALID,
    429: ErrorKind.OVERLOADED,
    503: ErrorKind.UNAVAILABLE,
}
KIND_OF_CODE = {"deadline_exceeded": ErrorKind.DEADLINE, "service_unavailable": ErrorKind.UNAVAILABLE}


class KServeHost:
    """What both APIs have in common: one server with one model."""

    def __init__(self, server: KServeServer, model: str, facts: HostFacts) -> None:
        self.server = server
        self.model = model
        self.facts = facts

    def close(self) -> None:
        """For hosts with a client that stays."""

    def load(self) -> Load:
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        running, waiting, usage = (self.server.metric(name, model_name=self.model) for name in names)
        return Load(num_running=int(running), num_waiting=int(waiting), kv_cache_usage=usage)

    def engine_pids(self) -> list[int]:
        return children(self.server.process.pid)

    def terminate(self) -> None:
        self.server.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        return self.server.process.wait(WAIT_S)


class GenerateHost(KServeHost):
    """Through `generate` and `generate_stream`, by plain HTTP."""

    def generate(self, ask: Ask) -> Answer:
        with self._post("generate", ask, stream=False) as connection:
            return Reader().whole(json.load(_response(connection)))

    @contextmanager
    def stream(self, ask: Ask) -> Iterator[Iterator[Piece]]:
        with self._post("generate_stream", ask, stream=True) as connection:
            yield self._pieces(connection)

    @contextmanager
    def _post(self, verb: str, ask: Ask, stream: bool) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.http_port, timeout=WAIT_S)
        body = request_of(ask, stream)
        if ask.deadline_s is not None:
            body["timeout"] = round(ask.deadline_s * 1e6)
        try:
            connection.connect()
            connection.request("POST", f"/v2/models/{ask.model or self.model}/{verb}", json.dumps(body))
        except ConnectionError as error:
            raise HostError(ErrorKind.UNAVAILABLE, str(error)) from error
        try:
            yield connection
        finally:
            connection.close()

    def _pieces(self, connection: http.client.HTTPConnection) -> Iterator[Piece]:
        reader = Reader()
        # The response keeps the socket open beyond its connection's end.
        with _response(connection) as response:
            for line in response:
                if line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        # An event has a text and no status.
                        raise HostError(None, event["error"])
                    yield reader.piece(event)


def _response(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    try:
        response = connection.getresponse()
    except ConnectionError as error:
        # Of a listener that has been closed before anybody took the connection.
        raise HostError(ErrorKind.UNAVAILABLE, str(error)) from error
    if response.status != 200:
        raise HostError(KIND_OF_STATUS[response.status], json.load(response)["error"])
    return response


class OpenAIHost(KServeHost):
    """Through the official client's completions. Owns an event loop: only there can a client leave before a status."""

    def __init__(self, server: KServeServer, model: str, facts: HostFacts) -> None:
        super().__init__(server, model, facts)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result(WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    def generate(self, ask: Ask) -> Answer:
        return asyncio.run_coroutine_threadsafe(self._whole(ask), self._loop).result(WAIT_S)

    @contextmanager
    def stream(self, ask: Ask) -> Iterator[Iterator[Piece]]:
        arrived: queue.SimpleQueue[Piece | BaseException | None] = queue.SimpleQueue()
        reading = asyncio.run_coroutine_threadsafe(self._read(ask, arrived), self._loop)
        try:
            yield _until_none(arrived)
        finally:
            reading.cancel()

    async def _whole(self, ask: Ask) -> Answer:
        try:
            whole = await self._create(ask, stream=False)
        except openai.APIError as error:
            raise _told(error) from error
        return Answer(
            texts=tuple(choice.text for choice in whole.choices),
            finish_reasons=tuple(choice.finish_reason for choice in whole.choices),
            num_prompt_tokens=whole.usage.prompt_tokens,
            num_output_tokens=whole.usage.completion_tokens,
        )

    async def _read(self, ask: Ask, arrived: queue.SimpleQueue[Piece | BaseException | None]) -> None:
        try:
            async with await self._create(ask, stream=True, stream_options={"include_usage": True}) as chunks:
                async for piece in _pieces(chunks):
                    arrived.put(piece)
            arrived.put(None)
        except openai.APIError as error:
            arrived.put(_told(error))
        except Exception as error:
            arrived.put(error)

    async def _create(self, ask: Ask, **streaming: Any) -> Any:
        deadline = {} if ask.deadline_s is None else {"deadline_s": ask.deadline_s}
        return await self._client.completions.create(
            model=ask.model or self.model, prompt=ask.prompt, extra_body={**ask.parameters, **deadline}, **streaming
        )


async def _pieces(chunks: AsyncIterator[Any]) -> AsyncIterator[Piece]:
    async for chunk in chunks:
        usage = chunk.usage
        yield Piece(
            texts={choice.index: choice.text for choice in chunk.choices},
            finish_reasons={choice.index: choice.finish_reason for choice in chunk.choices if choice.finish_reason},
            num_prompt_tokens=None if usage is None else usage.prompt_tokens,
            num_output_tokens=0 if usage is None else usage.completion_tokens,
        )


def _until_none(arrived: queue.SimpleQueue[Piece | BaseException | None]) -> Iterator[Piece]:
    while (piece := arrived.get(timeout=WAIT_S)) is not None:
        if isinstance(piece, BaseException):
            raise piece
        yield piece


def _told(error: openai.APIError) -> BaseException:
    """An error in the middle of a stream has a code, one before it a status as well."""
    if isinstance(error, openai.APIConnectionError):
        return HostError(ErrorKind.UNAVAILABLE, str(error.__cause__))
    assert isinstance(error.body, dict), error
    if isinstance(error, openai.APIStatusError):
        return HostError(KIND_OF_STATUS[error.status_code], error.body["message"])
    return HostError(KIND_OF_CODE[error.body["code"]], error.body["message"])
