"""What the Triton server costs: tokens/s of W2 through 64 gRPC streams against the engine alone, in one run, in turns.

Both sides compute the very same tokens on the same cores; the client runs on them too. Ends with exit code 1 below the
floor.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc.aio as grpcclient
from rich.console import Console
from rich.table import Table
from stage import Load, write_results

from octavo import bench, workloads
from octavo.bench import Repetition
from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.stats import percentile
from octavo.text.tokenizer import Tokenizer, open_tokenizer
from octavo.workloads import Item, Workload
from octavo_triton.launch import ServerOptions, TritonServer, free_port

FLOOR = 0.9
MODEL = "bench"
CONFIG_PBTXT = 'backend: "octavo"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]\n'


@dataclass(frozen=True, slots=True)
class Prompts:
    """A workload whose prompts exist as texts too: what the server makes of the texts is what the engine is given."""

    workload: Workload
    texts: list[str]


def as_texts(workload: Workload, tokenizer: Tokenizer) -> Prompts:
    """The workload with texts that come out at its own lengths, cut from the left as truncate_prompt_tokens does."""
    texts, items = [], []
    for item in workload.items:
        text = tokenizer.decode(item.prompt_token_ids)
        token_ids = tokenizer.encode(text)
        length = len(item.prompt_token_ids)
        assert len(token_ids) >= length, "a text with fewer tokens than it was made of"
        texts.append(text)
        items.append(Item(token_ids[-length:], item.num_output_tokens))
    return Prompts(replace(workload, items=tuple(items)), texts)


@contextmanager
def running_server(args: argparse.Namespace) -> Iterator[TritonServer]:
    """A server of its own with the measured model."""
    with tempfile.TemporaryDirectory() as folder:
        version = Path(folder) / MODEL / "1"
        version.mkdir(parents=True)
        arguments = engine_arguments(args)
        (version / "model.json").write_text(json.dumps(arguments), encoding="utf-8")
        (version.parent / "config.pbtxt").write_text(CONFIG_PBTXT, encoding="utf-8")
        options = ServerOptions(
            model_repository=Path(folder),
            server_dir=args.server_dir,
            http_port=free_port(),
            grpc_port=free_port(),
            metrics_port=free_port(),
        )
        with TritonServer(options) as server:
            yield server


def engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The same for both sides. W2 shares no prefix; a cache would only remember it from one repetition to the next."""
    found = {"dtype": "bfloat16", "num_threads": args.threads, "enable_prefix_caching": False}
    return found | ({"model": args.model} if args.model else {})


async def stream(client: grpcclient.InferenceServerClient, text: str, item: Item) -> list[float]:
    """When each response with text of one request came. Asks for the text alone, as most clients do."""
    sampling = {
        "temperature": 0,
        "max_tokens": item.num_output_tokens,
        "ignore_eos": True,
        "truncate_prompt_tokens": len(item.prompt_token_ids),
    }
    inputs = [_text("text_input", text), _text("sampling_parameters", json.dumps(sampling))]
    inputs.append(_flag("stream"))

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": MODEL, "inputs": inputs}

    times = []
    async for _, error in client.stream_infer(requests()):
        assert error is None, error
        times.append(perf_counter())
    return times


def _text(name: str, value: str) -> grpcclient.InferInput:
    tensor = grpcclient.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value.encode()], dtype=np.object_))
    return tensor


def _flag(name: str) -> grpcclient.InferInput:
    tensor = grpcclient.InferInput(name, [1], "BOOL")
    tensor.set_data_from_numpy(np.array([True]))
    return tensor


async def through_server(server: TritonServer, prompts: Prompts) -> Repetition:
    """All requests at once, each in a stream of its own."""
    workload = prompts.workload
    async with grpcclient.InferenceServerClient(server.grpc_address) as client:
        start = perf_counter()
        times = await asyncio.gather(
            *(stream(client, text, item) for text, item in zip(prompts.texts, workload.items, strict=True))
        )
        wall_s = perf_counter() - start
    return Repetition(
        wall_s=wall_s,
        num_requests=len(times),
        num_prompt_tokens=workload.num_prompt_tokens,
        num_output_tokens=workload.num_output_tokens,
        ttft_s=[when[0] - start for when in times],
        itl_s=[gap for when in times for gap in bench.gaps(when)],
    )


def cpu_seconds(server: TritonServer) -> dict[str, float]:
    """CPU time so far: of the server, its Python stub, the engine process, and this client."""
    found = {"client": _seconds(psutil.Process()), "server": _seconds(psutil.Process(server.pid))}
    for child in psutil.Process(server.pid).children(recursive=True):
        kind = "engine" if "octavo.engine_process" in " ".join(child.cmdline()) else "stub"
        found[kind] = found.get(kind, 0.0) + _seconds(child)
    return found


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass(frozen=True, slots=True)
class Measured:
    """One pair of turns on one workload; `cpu_s` is what each process used during the server's turn."""

    workload: str
    alone: Repetition
    server: Repetition
    cpu_s: dict[str, float]
    others_cores: list[float]

    @property
    def ratio(self) -> float:
        """Tokens/s through the server by tokens/s of the engine alone."""
        return self.alone.wall_s / self.server.wall_s

    @property
    def added_ms(self) -> float:
        """Median gap between tokens at the client, minus that of the engine alone."""
        return 1e3 * (percentile(self.server.itl_s, 0.5) - percentile(self.alone.itl_s, 0.5))


def measure(engine: Engine, server: TritonServer, prompts: Prompts, salt: str) -> Measured:
    """The engine alone, then the server."""
    load = Load()
    alone = bench.run_once(engine, prompts.workload, salt)
    others = [load.others()]
    load, before = Load(), cpu_seconds(server)
    served = asyncio.run(through_server(server, prompts))
    after = cpu_seconds(server)
    others.append(load.others())
    cpu_s = {name: round(after[name] - before[name], 2) for name in after}
    return Measured(prompts.workload.name, alone, served, cpu_s, others)


def run(args: argparse.Namespace, told: Callable[[str], None]) -> list[Measured]:
    """All turns. The engine alone lives in this process, beside the client, and waits while the server has its turn."""
    checkpoint = open_checkpoint(args.model)
    tokenizer = open_tokenizer(checkpoint, None)
    made = [as_texts(workloads.make(name, checkpoint.vocab_size), tokenizer) for name in ("W1", "W2")]
    engine = Engine.from_config(EngineConfig(**engine_arguments(args)))
    found = []
    try:
        with running_server(args) as server:
            told("both are ready")
            warm = made[1].workload.clipped(8, 16, 8)
            measure(engine, server, as_texts(warm, tokenizer), "warm-up")
            for i in range(args.repeat):
                for prompts in made:
                    found.append(measure(engine, server, prompts, str(i)))
                    told(f"{found[-1].workload}: {found[-1].ratio:.1%}, CPU seconds {found[-1].cpu_s}")
    finally:
        engine.shutdown()
    return found


def table(found: Sequence[Measured]) -> Table:
    """A row a workload."""
    view = Table(title="The Triton server's gRPC streams against the engine alone")
    for column in ("workload", "engine alone tok/s", "server tok/s", "ratio", "added p50 ms a token", "added TTFT ms"):
        view.add_column(column, justify="right")
    for name in dict.fromkeys(m.workload for m in found):
        rows = [m for m in found if m.workload == name]
        alone, served = ([m.num_output_tokens / m.wall_s for m in side] for side in _sides(rows))
        ttft = [1e3 * (median(m.server.ttft_s) - median(m.alone.ttft_s)) for m in rows]
        added = [m.added_ms for m in rows]
        ratio = f"{median(m.ratio for m in rows):.1%}"
        figures = [
            f"{median(values):.1f} ({min(values):.1f}..{max(values):.1f})" for values in (alone, served, added, ttft)
        ]
        view.add_row(name, figures[0], figures[1], ratio, figures[2], figures[3])
    return view


def _sides(rows: Sequence[Measured]) -> tuple[list[Repetition], list[Repetition]]:
    return [row.alone for row in rows], [row.server for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: the embedded model")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--server-dir", type=Path, default=Path(".server"))
    parser.add_argument("--write", action="store_true", help="keep the results as JSON")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    # Now, while the load average does not count this run itself.
    environment = bench.environment()
    found = run(args, console.log)
    console.print(table(found))
    ratio = median(m.ratio for m in found if m.workload == "W2")
    if args.write:
        file = write_results("overhead", environment | {"w2_ratio": ratio, "runs": [slim(m) for m in found]})
        console.print(f"written: {file}")
    if ratio < FLOOR:
        console.print(f"below the floor: {ratio:.1%} of the engine alone, at least {FLOOR:.0%} wanted")
    return int(ratio < FLOOR)


def slim(measured: Measured) -> dict[str, Any]:
    """A turn without its thousands of single gaps."""

    def side(repetition: Repetition) -> dict[str, float]:
        return {
            "wall_s": repetition.wall_s,
            "output_tok_s": repetition.num_output_tokens / repetition.wall_s,
            "itl_p50_ms": 1e3 * percentile(repetition.itl_s, 0.5),
            "itl_p99_ms": 1e3 * percentile(repetition.itl_s, 0.99),
            "ttft_p50_ms": 1e3 * percentile(repetition.ttft_s, 0.5),
        }

    kept = {"workload": measured.workload, "ratio": measured.ratio, "added_p50_ms": measured.added_ms}
    return kept | {
        "alone": side(measured.alone),
        "server": side(measured.server),
        "cpu_s": measured.cpu_s,
        "others_cores": measured.others_cores,
    }


if __name__ == "__main__":
    sys.exit(main())
