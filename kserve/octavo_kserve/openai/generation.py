"""Runs a request: hands its prompts to the engine, merges what comes back, and lets nothing run on that nobody reads.

Knows no response and no connection.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import octavo
from octavo_kserve.openai.request import GenerateRequest

Outputs = AsyncIterator[tuple[int, octavo.RequestOutput]]

# Clients may reuse an id, the engine wants each once.
_numbers = itertools.count()


@asynccontextmanager
async def generate(request: GenerateRequest) -> AsyncIterator[Outputs]:
    """What is new, as (number of the prompt, output) in the order in which it comes, until all have ended.

    Leaving the context, for whatever reason, cancels what has not ended. Raises what refuses a prompt, or what ended
    one, after what came before. What a slow reader has not taken yet is merged, prompt by prompt.
    """
    # Templates and tokenizers take milliseconds, too long for the loop that feeds everybody's streams.
    submitting = asyncio.get_running_loop().run_in_executor(None, _submit, request)
    try:
        streams = await asyncio.shield(submitting)
    except asyncio.CancelledError:
        submitting.add_done_callback(_cancel_late)
        raise
    try:
        yield _merge(streams)
    finally:
        for stream in streams:
            stream.notify(None)
            stream.cancel()


def _submit(request: GenerateRequest) -> list[octavo.RequestStream]:
    """All prompts or none."""
    call, streams = request.call, list[octavo.RequestStream]()
    try:
        for prompt in request.prompts:
            stream = call.served.engine.submit(
                prompt,
                request.params,
                request_id=f"{call.response_id}-{next(_numbers)}",
                priority=call.priority,
                deadline_s=call.deadline_s,
                cache_salt=call.cache_salt,
            )
            streams.append(stream)
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return streams


def _cancel_late(submitting: asyncio.Future[list[octavo.RequestStream]]) -> None:
    """The client left while its request was being submitted in another thread."""
    if not submitting.cancelled() and submitting.exception() is None:
        for stream in submitting.result():
            stream.cancel()


async def _merge(streams: list[octavo.RequestStream]) -> Outputs:
    loop = asyncio.get_running_loop()
    ready: asyncio.Queue[int] = asyncio.Queue()

    def announce(i: int, _: octavo.RequestStream) -> None:
        loop.call_soon_threadsafe(ready.put_nowait, i)

    for i, stream in enumerate(streams):
        stream.notify(partial(announce, i))
    num_running = len(streams)
    while num_running:
        i = await ready.get()
        try:
            output = streams[i].take(timeout_s=0)
        except TimeoutError:
            continue
        if output is None:
            raise octavo.RequestFailed("the request ended without its last output")
        num_running -= output.finished
        yield i, output
