"""W5 and W6 over HTTP: each contestant's server, asked for the same requests at the same times.

Knows the servers' command lines and what their events look like; nothing of ratios.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import hosts
import peer_contestants as contestants
import streams
from peer_arrivals import DURATION_S, QUICK_DURATION_S, Arrival, arrivals, run_at
from peer_contestants import Contestant
from peer_process import PeerFailed, Setting
from stage import Load
from streams import Stream, StreamFailed

from octavo import bench
from octavo.checkpoint import open_checkpoint
from octavo.stats import percentile
from octavo.text.tokenizer import open_tokenizer
from octavo.workloads import Item
from octavo_triton.launch import LaunchError

sys.path.append(str(contestants.ADAPTERS))

import llama_engine
from server_process import ServerProcess

# llama.cpp's: more than ever run at once, each long enough for W6's long prompts.
NUM_SLOTS = 32
SLOT_TOKENS = 2304
SERVER_DIR = Path(".server")
MODEL = "bench"
# Of a server that does not start, or answers with something else than streams of tokens.
FAILURES = (OSError, ImportError, RuntimeError, AssertionError, LookupError, ValueError, StreamFailed, LaunchError)


@dataclass(frozen=True, slots=True)
class Server:
    """`times` tells when each token's event of a stream that has ended came; it raises StreamFailed for a bad end."""

    stream: Callable[[Item], Stream]
    times: Callable[[Stream, Item], list[float]]


@contextmanager
def open_server(contestant: Contestant, setting: Setting) -> Iterator[Server]:
    """Starts it, and asks it once."""
    opened = _ours if contestant.is_ours else _openai_server
    with opened(contestant, setting) as server:
        drive(server, [Arrival(0.0, Item(list(range(201, 265)), 8))])
        yield server


@contextmanager
def _ours(contestant: Contestant, setting: Setting) -> Iterator[Server]:
    arguments = {"dtype": "bfloat16", "num_threads": setting.threads}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host = stack.enter_context(hosts.HOSTS[contestant.adapter](folder, arguments, SERVER_DIR))
        if contestant.adapter == "kserve":
            # The host's own way to ask takes texts; token ids are what the other servers are asked with.
            url = host.stream("", Item([0], 1)).url.rpartition("/v1/")[0]
            yield Server(lambda item: ask(url, MODEL, item), token_times)
        else:
            tokenizer = open_tokenizer(open_checkpoint(None))
            yield Server(
                lambda item: host.stream(tokenizer.decode(item.prompt_token_ids), item),
                lambda stream, item: host.times(stream),
            )


@contextmanager
def _openai_server(contestant: Contestant, setting: Setting) -> Iterator[Server]:
    settings = contestants.settings(contestant, setting.peers, setting.threads)
    if contestant.adapter == "llama":
        command = llama_engine.command(settings, NUM_SLOTS, SLOT_TOKENS)
    else:
        command = [
            contestants.python(contestant, setting.peers), "-m", "vllm.entrypoints.openai.api_server",
            "--model", settings["model"], "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", "{port}",
            "--dtype", "bfloat16", "--max-model-len", "4096", "--max-num-seqs", "64", "--disable-log-stats",
        ]  # fmt: skip
    variables = contestants.environment(contestant, setting.peers, setting.threads)
    with ServerProcess(command, setting.log(contestant), variables) as server:
        yield Server(lambda item: ask(server.url, MODEL, item), token_times)


def ask(url: str, model: str, item: Item) -> Stream:
    """OpenAI's completions, for exactly these lengths."""
    body = {
        "model": model, "prompt": item.prompt_token_ids, "max_tokens": item.num_output_tokens, "temperature": 0,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    return streams.server_sent(f"{url}/v1/completions", json.dumps(body).encode())


def token_times(stream: Stream, item: Item) -> list[float]:
    """When each event with a token came. A last event that only says why it ended brings none."""
    if not stream.messages or stream.messages[-1].strip() != b"[DONE]":
        raise StreamFailed(f"a stream ended with {stream.messages[-1:]!r}")
    times, num_tokens = [], None
    for message, when in zip(stream.messages[:-1], stream.times, strict=False):
        event = json.loads(message)
        if usage := event.get("usage"):
            num_tokens = usage["completion_tokens"]
        if any(choice["text"] or choice.get("finish_reason") is None for choice in event["choices"]):
            times.append(when)
    if num_tokens != item.num_output_tokens:
        raise StreamFailed(f"asked for {item.num_output_tokens} tokens, {num_tokens} came")
    return times


def drive(server: Server, requests: Sequence[Arrival]) -> dict[str, float]:
    """Sends all at their times. Figures in ms; TTFT from when a request was due; those of long prompts apart."""
    made = [server.stream(request.item) for request in requests]
    start = run_at(made, [request.at_s for request in requests])
    ttft_s: dict[bool, list[float]] = {False: [], True: []}
    gaps: list[float] = []
    num_events = num_tokens = 0
    for request, stream in zip(requests, made, strict=True):
        times = server.times(stream, request.item)
        ttft_s[request.is_long].append(times[0] - start - request.at_s)
        gaps += [] if request.is_long else bench.gaps(times)
        num_events += len(times)
        num_tokens += request.item.num_output_tokens
    figures = {f"ttft_p{p}_ms": 1e3 * percentile(ttft_s[False], p / 100) for p in (50, 99)}
    figures |= {f"itl_p{p}_ms": 1e3 * percentile(gaps, p / 100) for p in (50, 99)}
    figures |= {"itl_mean_ms": 1e3 * fmean(gaps), "num_requests": len(requests)}
    # Below 1 where a server sends some tokens together: its gaps are between events.
    figures |= {"events_per_token": num_events / num_tokens}
    if ttft_s[True]:
        figures["long_ttft_p50_ms"] = 1e3 * percentile(ttft_s[True], 0.5)
    return figures


def measure(
    contestant: Contestant, setting: Setting, chosen: Sequence[str], quick: bool
) -> Iterator[tuple[str, dict[str, float], float]]:
    """A fresh server for the workloads: the name of each, its figures, and how many cores others used meanwhile.

    Raises PeerFailed.
    """
    begun = time.monotonic()
    try:
        with open_server(contestant, setting) as server:
            ready_s = time.monotonic() - begun
            for workload in chosen:
                requests = arrivals(workload, QUICK_DURATION_S if quick else DURATION_S)
                load = Load()
                figures = drive(server, requests)
                yield workload, figures | {"ready_s": ready_s}, load.others()
    except FAILURES as error:
        raise PeerFailed(f"{type(error).__name__}: {error}") from error
