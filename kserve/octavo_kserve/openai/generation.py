"""Runs a request: hands its prompts to the engine, merges what comes back, and lets nothing run on that nobody reads.

Knows no response and no connection.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import octavo
from octavo_kserve.openai.request import Call
from octavo_kserve.openai.spelling import spelled
from octavo_kserve.submission import submit_in_thread

Outputs = AsyncIterator[tuple[int, octavo.RequestOutput]]
Prompts = Sequence[str | list[int] | octavo.ChatPrompt | octavo.TextPair]
Params = octavo.SamplingParams | octavo.PoolingParams

# Clients may reuse an id, the engine wants each once.
_numbers = itertools.count()


@asynccontextmanager
async def generate(call: Call, prompts: Prompts, params: Params) -> AsyncIterator[Outputs]:
    """What is new, as (number of the prompt, output) in the order in which it comes, until all have ended.

    Leaving the context, for whatever reason, cancels what has not ended. Raises what refuses a prompt, or what ended
    one, after what came before. What a slow reader has not taken yet is merged, prompt by prompt.
    """
    streams = await submit_in_thread(partial(_submit, call, prompts, params), _cancel)
    try:
        yield _merge(streams)
    finally:
        for stream in streams:
            stream.notify(None)
            stream.cancel()


def _submit(call: Call, prompts: Prompts, params: Params) -> list[octavo.RequestStream]:
    """All prompts or none. Of several, an error says which it is about: `prompt[3]`."""
    _check_task(call, params)
    streams = list[octavo.RequestStream]()
    try:
        for i, prompt in enumerate(prompts):
            with spelled({"prompt": f"prompt[{i}]"} if len(prompts) > 1 else {}):
                stream = call.served.engine.submit(
                    prompt,
                    params,
                    request_id=f"{call.response_id}-{next(_numbers)}",
                    priority=call.priority,
                    deadline_s=call.deadline_s,
                    cache_salt=call.cache_salt,
                )
            streams.append(stream)
    except BaseException:
        _cancel(streams)
        raise
    return streams


def _check_task(call: Call, params: Params) -> None:
    """Raises InvalidRequest that names the model as the client does, which the engine cannot."""
    embeds = call.served.engine.config.runner == "pooling"
    if embeds and isinstance(params, octavo.SamplingParams):
        does = "scores pairs of texts" if call.served.engine.scores_pairs else "makes embeddings"
        raise octavo.InvalidRequest("model", call.model, f"one that generates text: this one {does}")
    if not embeds and isinstance(params, octavo.PoolingParams):
        raise octavo.InvalidRequest("model", call.model, "one that makes embeddings: this one generates text")


def _cancel(streams: list[octavo.RequestStream]) -> None:
    for stream in streams:
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
