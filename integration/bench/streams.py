"""Many streams at once, read with as little processor time as possible: the client shares the cores with the server.

libcurl does the HTTP, over one HTTP/2 connection (gRPC) or one connection a stream (server-sent events); what is left
is to cut what comes into messages and to note when each came. Knows no message's meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import pycurl

_GRPC_PREFIX_BYTES = 5
_SELECT_S = 1.0

Cut = Callable[[bytearray], list[bytes]]


class StreamFailed(Exception):
    """A stream ended in another way than it should; the text says how."""


@dataclass(slots=True)
class Stream:
    """A POST whose response is a stream. `cut` takes all whole messages out of the buffer that it is given.

    `messages` and `times` (seconds, `perf_counter`) grow while it runs, one entry a message. `headers_seen` has the
    response's headers and trailers.
    """

    url: str
    headers: list[str]
    body: bytes
    cut: Cut
    http2: bool = False
    messages: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    headers_seen: dict[str, str] = field(default_factory=dict)
    _buffer: bytearray = field(default_factory=bytearray)

    def take(self, data: bytes) -> None:
        """Called with each piece of the response."""
        now = perf_counter()
        self._buffer += data
        found = self.cut(self._buffer)
        self.messages += found
        self.times += [now] * len(found)

    def take_header(self, line: bytes) -> None:
        """Called with each header and trailer."""
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            self.headers_seen[name.lower()] = value.strip()

    def handle(self) -> pycurl.Curl:
        """What libcurl calls a transfer."""
        curl = pycurl.Curl()
        curl.setopt(pycurl.URL, self.url)
        curl.setopt(pycurl.POSTFIELDS, self.body)
        # No wait for a "100 Continue" before the body.
        curl.setopt(pycurl.HTTPHEADER, [*self.headers, "Expect:"])
        curl.setopt(pycurl.WRITEFUNCTION, self.take)
        curl.setopt(pycurl.HEADERFUNCTION, self.take_header)
        curl.setopt(pycurl.NOSIGNAL, 1)
        if self.http2:
            curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE)
            # All over the connection that the first one opens.
            curl.setopt(pycurl.PIPEWAIT, 1)
        return curl


def grpc(url: str, message: bytes) -> Stream:
    """A call with one message, encoded, to be answered by a stream of them."""
    headers = ["content-type: application/grpc", "te: trailers"]
    body = b"\0" + len(message).to_bytes(_GRPC_PREFIX_BYTES - 1, "big") + message
    return Stream(url, headers, body, grpc_messages, http2=True)


def server_sent(url: str, body: bytes) -> Stream:
    """JSON, to be answered by server-sent events."""
    return Stream(url, ["content-type: application/json"], body, sse_events)


def grpc_messages(buffer: bytearray) -> list[bytes]:
    """Takes gRPC's length-prefixed messages, without the prefix, out of the buffer."""
    found, start = [], 0
    while len(buffer) >= start + _GRPC_PREFIX_BYTES:
        body = start + _GRPC_PREFIX_BYTES
        end = body + int.from_bytes(buffer[start + 1 : body], "big")
        if len(buffer) < end:
            break
        found.append(bytes(buffer[body:end]))
        start = end
    del buffer[:start]
    return found


def sse_events(buffer: bytearray) -> list[bytes]:
    """Takes the data of server-sent events out of the buffer."""
    *events, rest = bytes(buffer).split(b"\n\n")
    buffer[:] = rest
    return [event.removeprefix(b"data: ") for event in events]


def run(streams: Sequence[Stream]) -> None:
    """Runs all at once, to their ends. Raises StreamFailed when one of them fails in HTTP or below."""
    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
    handles = [stream.handle() for stream in streams]
    for handle in handles:
        multi.add_handle(handle)
    num_running = len(handles)
    while num_running:
        _, num_running = multi.perform()
        if num_running:
            multi.select(_SELECT_S)
    end(multi, handles)


def end(multi: pycurl.CurlMulti, handles: Sequence[pycurl.Curl]) -> None:
    """Closes streams that have come to their ends. Raises StreamFailed when one of them failed in HTTP or below."""
    _, _, failed = multi.info_read(len(handles))
    if failed:
        raise StreamFailed(f"{len(failed)} of {len(handles)} streams failed, the first with {failed[0][2]}")
    for handle in handles:
        if (status := handle.getinfo(pycurl.RESPONSE_CODE)) != 200:
            raise StreamFailed(f"a stream was answered with status {status}")
        multi.remove_handle(handle)
        handle.close()
    multi.close()
