"""What a host costs: tokens/s of W2 through 64 streams against the engine alone, in one run, in turns.

`--host triton` asks over gRPC, `--host kserve` over OpenAI's server-sent events. Both sides compute the very same
tokens on the same cores; the client runs on them too. Ends with exit code 1 below the floor.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import psutil
import streams
from hosts import HOSTS, Host
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

FLOOR = 0.9
# Columns of the table, and what each shows of `slim`.
PERCENTILES = {
    "TTFT p50 / p99 ms": ("ttft_p50_ms", "ttft_p99_ms"),
    "gap p50 / p99 / longest ms": ("itl_p50_ms", "itl_p99_ms", "itl_max_ms"),
}


@dataclass(frozen=True, slots=True)
class Prompts:
    """A workload whose prompts exist as texts too: what a host makes of the texts is what the engine is given."""

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


def engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The same for both sides. W2 shares no prefix; a cache would only remember it from one repetition to the next."""
    found = {"dtype": "bfloat16", "num_threads": args.threads, "enable_prefix_caching": False}
    return found | ({"model": args.model} if args.model else {})


def through_host(host: Host, prompts: Prompts) -> Repetition:
    """All requests at once, each in a stream of its own."""
    workload = prompts.workload
    made = [host.stream(text, item) for text, item in zip(prompts.texts, workload.items, strict=True)]
    start = perf_counter()
    streams.run(made)
    wall_s = perf_counter() - start
    times = [host.times(stream) for stream in made]
    return Repetition(
        wall_s=wall_s,
        num_requests=len(times),
        num_prompt_tokens=workload.num_prompt_tokens,
        num_output_tokens=workload.num_output_tokens,
        ttft_s=[when[0] - start for when in times],
        itl_s=[gap for when in times for gap in bench.gaps(when)],
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """One pair of turns on one workload; `cpu_s` is what each process used during the host's turn."""

    workload: str
    alone: Repetition
    host: Repetition
    cpu_s: dict[str, float]
    others_cores: list[float]

    @property
    def ratio(self) -> float:
        """Tokens/s through the host by tokens/s of the engine alone."""
        return self.alone.wall_s / self.host.wall_s

    @property
    def added_ms(self) -> float:
        """Median gap between tokens at the client, minus that of the engine alone."""
        return 1e3 * (percentile(self.host.itl_s, 0.5) - percentile(self.alone.itl_s, 0.5))


def measure(engine: Engine, host: Host, prompts: Prompts, salt: str) -> Measured:
    """The engine alone, then the host."""
    load = Load()
    alone = bench.run_once(engine, prompts.workload, salt)
    others = [load.others()]
    load, before = Load(), host.cpu_seconds()
    served = through_host(host, prompts)
    after = host.cpu_seconds()
    others.append(load.others())
    cpu_s = {name: round(after[name] - before[name], 2) for name in after}
    return Measured(prompts.workload.name, alone, served, cpu_s, others)


def run(args: argparse.Namespace, told: Callable[[str], None]) -> list[Measured]:
    """All turns. The engine alone lives in this process, beside the client, and waits while the host has its turn."""
    checkpoint = open_checkpoint(args.model)
    tokenizer = open_tokenizer(checkpoint, None)
    made = [as_texts(workloads.make(name, checkpoint.vocab_size), tokenizer) for name in ("W1", "W2")]
    arguments = engine_arguments(args)
    engine = Engine.from_config(EngineConfig(**arguments))
    found = []
    with contextlib.ExitStack() as stack:
        stack.callback(engine.shutdown)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host = stack.enter_context(HOSTS[args.host](folder, arguments, args.server_dir))
        told("both are ready")
        warm = made[1].workload.clipped(8, 16, 8)
        measure(engine, host, as_texts(warm, tokenizer), "warm-up")
        for i in range(args.repeat):
            for prompts in made:
                found.append(measure(engine, host, prompts, str(i)))
                told(f"{found[-1].workload}: {found[-1].ratio:.1%}, CPU seconds {found[-1].cpu_s}")
    return found


def table(host: str, found: Sequence[Measured]) -> Table:
    """A row a workload: medians over the turns, rates and what is added with their range."""
    view = Table(title=f"Streams from the {host} host against the engine alone")
    for column in ("workload", "engine alone tok/s", "host tok/s", "ratio", "added p50 ms a token", *PERCENTILES):
        view.add_column(column, justify="right")
    for name in dict.fromkeys(m.workload for m in found):
        rows = [m for m in found if m.workload == name]
        alone, served = ([m.num_output_tokens / m.wall_s for m in side] for side in _sides(rows))
        ratio = f"{median(m.ratio for m in rows):.1%}"
        figures = [
            f"{median(values):.1f} ({min(values):.1f}..{max(values):.1f})"
            for values in (alone, served, [m.added_ms for m in rows])
        ]
        sides = [slim(m)["host"] for m in rows]
        told = [
            " / ".join(f"{median(side[key] for side in sides):.0f}" for key in keys) for keys in PERCENTILES.values()
        ]
        view.add_row(name, *figures[:2], ratio, figures[2], *told)
    return view


def _sides(rows: Sequence[Measured]) -> tuple[list[Repetition], list[Repetition]]:
    return [row.alone for row in rows], [row.host for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", choices=HOSTS, default="triton")
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
    console.print(table(args.host, found))
    ratio = median(m.ratio for m in found if m.workload == "W2")
    if args.write:
        file = write_results(
            f"overhead-{args.host}", environment | {"w2_ratio": ratio, "runs": [slim(m) for m in found]}
        )
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
            "itl_max_ms": 1e3 * max(repetition.itl_s),
            "ttft_p50_ms": 1e3 * percentile(repetition.ttft_s, 0.5),
            "ttft_p99_ms": 1e3 * percentile(repetition.ttft_s, 0.99),
        }

    kept = {"workload": measured.workload, "ratio": measured.ratio, "added_p50_ms": measured.added_ms}
    return kept | {
        "alone": side(measured.alone),
        "host": side(measured.host),
        "cpu_s": measured.cpu_s,
        "others_cores": measured.others_cores,
    }


if __name__ == "__main__":
    sys.exit(main())
