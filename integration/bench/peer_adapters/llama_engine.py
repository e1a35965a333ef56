"""llama.cpp for the comparison: its own server with a slot a request, asked over loopback for streams of token ids.

The server's slots are set when it starts: each workload has a server of its own.
"""

from __future__ import annotations

import http.client
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lines import UNKNOWN, Collector, Item, Outcome, serve
from server_process import ServerProcess

TIMEOUT_S = 900
# The context is cut into as many parts as there are slots.
LEAST_SLOT_TOKENS = 512


def command(settings: dict[str, Any], num_slots: int, slot_tokens: int) -> list[str]:
    """The server's command line, for ServerProcess."""
    threads = str(settings["threads"])
    options = {
        "-m": settings["model"], "-t": threads, "-tb": threads, "-b": "2048", "-ub": "512", "-lv": "0",
        "--parallel": str(num_slots), "-c": str(num_slots * slot_tokens), "--host": "127.0.0.1", "--port": "{port}",
    }  # fmt: skip
    flat = [part for pair in options.items() for part in pair]
    return [settings["server"], *flat, "--no-kv-unified", "--no-webui"]


class LlamaCpp:
    """One server at a time."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._server: ServerProcess | None = None
        self._folder = tempfile.TemporaryDirectory()
        self.version = settings["version"]

    def prepare(self, items: Sequence[Item]) -> None:
        self._stop()
        longest = max(len(item.prompt_token_ids) + item.num_output_tokens for item in items)
        slot_tokens = max(LEAST_SLOT_TOKENS, -(-(longest + 16) // 256) * 256)
        log = Path(self._folder.name) / "server.log"
        self._server = ServerProcess(command(self._settings, len(items), slot_tokens), log)
        self._server.__enter__()

    def run(self, items: Sequence[Item]) -> Outcome:
        collector = Collector(items)
        with ThreadPoolExecutor(len(items)) as pool:
            list(pool.map(lambda i: self._stream(i, items[i], collector), range(len(items))))
        outcome = collector.outcome()
        if len(items) == 1:
            outcome.token_ids = [self._whole(items[0])]
        return outcome

    def close(self) -> None:
        self._stop()
        self._folder.cleanup()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = None

    def _stream(self, index: int, item: Item, collector: Collector) -> None:
        """A token that ends within a character is not sent, only counted with the next event: its id stays unknown."""
        num_seen = 0
        for line in self._ask(item, stream=True):
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                sent = event["tokens"]
                num_new = event["tokens_predicted"] - num_seen
                collector.add(index, [UNKNOWN] * (num_new - len(sent)) + sent)
                num_seen += num_new

    def _whole(self, item: Item) -> list[int]:
        """All token ids; only an answer in one piece has them."""
        token_ids: list[int] = json.loads(b"".join(self._ask(item, stream=False)))["tokens"]
        return token_ids

    def _ask(self, item: Item, stream: bool) -> Iterator[bytes]:
        assert self._server is not None
        body = {
            "prompt": item.prompt_token_ids, "n_predict": item.num_output_tokens, "temperature": 0, "top_k": 1,
            "ignore_eos": True, "stream": stream, "cache_prompt": True, "return_tokens": True,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise RuntimeError(response.read()[:300])
            yield from response
        finally:
            connection.close()


if __name__ == "__main__":
    serve(LlamaCpp)
