"""Octavo against transformers on W1-W4, in one run and in turns: a table, JSON, a chart; exit 1 below the floor.

Each engine lives in its own process (worker.py). The peers are slow, so they run samples of the many-request
workloads; their rate is tokens / time over the sample, split over the repetitions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chart import draw
from rich.console import Console
from rich.table import Table
from stage import Load, write_results

from octavo import bench, workloads
from octavo.bench import KV_WASTE_LIMIT, Repetition, Spread, WorkloadResult
from octavo.config import NOBODY_WAITS_S, EngineConfig
from octavo.progress import count_bar

HERE = Path(__file__).parent
STATIC_BATCH = 16
LEAST_SPEEDUP = 8.0
# Other processes' use of the machine, in cores, from which on a stage is called disturbed.
MOST_OTHERS_CORES = 0.25
# What --quick makes of every workload: requests, prompt tokens, output tokens.
QUICK = (4, 64, 8)
# Who is measured -> the process that it lives in; the two ways to use transformers share one, and take turns.
PROCESSES = {"octavo": "octavo", "single": "transformers", "static": "transformers"}
TITLES = {"octavo": "octavo", "single": "transformers, one at a time", "static": "transformers, static batches of 16"}


@dataclass(frozen=True, slots=True)
class Job:
    """One stage of the run: these requests of a workload, on one engine."""

    contestant: str
    workload: str
    repetition: int
    indices: list[int]


@dataclass(slots=True)
class Process:
    """One engine's process and its answers."""

    popen: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, model: str | None, num_threads: int) -> Process:
        command = [sys.executable, str(HERE / "worker.py"), name, "--threads", str(num_threads)]
        command += ["--model", model] if model else []
        # Before torch is loaded: its pool of threads is sized by these.
        env = os.environ | {"OMP_NUM_THREADS": str(num_threads), "HF_HUB_OFFLINE": "1"}
        return cls(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env))

    def answer(self) -> object:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise SystemExit(f"an engine's process ended with exit status {self.popen.wait()}; see its message above")
        return json.loads(line)

    def run(self, job: Job, clip: Sequence[int] | None) -> Repetition:
        assert self.popen.stdin is not None
        salt = str(job.repetition)
        batch_size = STATIC_BATCH if job.contestant == "static" else 1
        request = {
            "workload": job.workload, "indices": job.indices, "salt": salt, "batch_size": batch_size, "clip": clip,
        }  # fmt: skip
        self.popen.stdin.write(json.dumps(request) + "\n")
        self.popen.stdin.flush()
        found = self.answer()
        assert isinstance(found, dict)
        return Repetition(**found)

    def stop(self) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        try:
            self.popen.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.popen.kill()


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` indices below `count`, evenly spaced; all of them when there are not more."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def sample(contestant: str, workload: str, count: int, peer_requests: int) -> list[list[int]]:
    """Batches of indices that an engine runs of a workload with `count` requests, over all repetitions."""
    if contestant == "static":
        # Whole batches of neighbours; of W3's, which are all alike, every other one.
        batches = [list(range(first, min(first + STATIC_BATCH, count))) for first in range(0, count, STATIC_BATCH)]
        return batches if workload == "W2" else batches[::2]
    return [[i] for i in evenly(count, peer_requests * count // 64 or 1)]


def plan(repeat: int, peer_requests: int, clip: Sequence[int] | None) -> list[Job]:
    """All stages, in turns: every repetition meets every engine, so that a slow minute of the machine hits all."""
    jobs = []
    for repetition in range(repeat):
        for name in workloads.NAMES:
            count = len(workloads.make(name).items)
            count = min(count, clip[0]) if clip else count
            for contestant in TITLES:
                if contestant == "octavo" or (count == 1 and contestant == "single"):
                    jobs.append(Job(contestant, name, repetition, list(range(count))))
                elif count > 1:
                    parts = sample(contestant, name, count, 64 if clip else peer_requests)[repetition::repeat]
                    indices = [i for part in parts for i in part]
                    jobs += [Job(contestant, name, repetition, indices)] if indices else []
    return jobs


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine on one workload. A sample's rates are over all of its requests together; the spread is its parts'."""

    contestant: str
    result: WorkloadResult
    sampled_requests: int
    output_tok_s: float
    total_tok_s: float
    others_cores: list[float]


def measured(
    jobs: Sequence[Job], seen: Sequence[Repetition], others: Sequence[float], clip: Sequence[int] | None
) -> Measured:
    workload = workloads.make(jobs[0].workload)
    workload = workload.clipped(*clip) if clip else workload
    result = bench.summarize(workload, seen)
    whole = all(len(job.indices) == len(workload.items) for job in jobs)
    wall_s = sum(r.wall_s for r in seen)
    pooled = [sum(r.num_output_tokens for r in seen), sum(r.num_output_tokens + r.num_prompt_tokens for r in seen)]
    output_tok_s, total_tok_s = (tokens / wall_s for tokens in pooled)
    if whole:
        output_tok_s, total_tok_s = result.output_tok_s.median, result.total_tok_s.median
    sampled = len({i for job in jobs for i in job.indices})
    return Measured(jobs[0].contestant, result, sampled, output_tok_s, total_tok_s, list(others))


def execute(
    jobs: Sequence[Job], args: argparse.Namespace, told: Callable[[str], None]
) -> Iterator[tuple[Job, Repetition, float]]:
    processes: dict[str, Process] = {}
    try:
        for name in sorted(set(PROCESSES.values())):
            processes[name] = Process.start(name, args.model, args.threads)
        for name, process in processes.items():
            process.answer()
            told(f"{name} is ready")
        for job in jobs:
            load = Load()
            repetition = processes[PROCESSES[job.contestant]].run(job, QUICK if args.quick else None)
            told(f"{job.workload} {TITLES[job.contestant]}: {repetition.wall_s:.1f} s")
            yield job, repetition, load.others()
    finally:
        for process in processes.values():
            process.stop()


def ratios(found: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Octavo's output rate over each peer's, by workload and peer."""
    own = {m.result.name: m for m in found if m.contestant == "octavo"}
    result: dict[str, dict[str, float]] = {name: {} for name in own}
    for m in found:
        if m.contestant != "octavo":
            result[m.result.name][m.contestant] = own[m.result.name].output_tok_s / m.output_tok_s
    return result


def disturbed(found: Sequence[Measured]) -> list[str]:
    """Stages that other processes slowed down: ratios with them are not to be quoted."""
    return [
        f"{m.result.name} {TITLES[m.contestant]}: others used {max(m.others_cores):.2f} cores"
        for m in found
        if max(m.others_cores) > MOST_OTHERS_CORES
    ]


def misses(found: Sequence[Measured]) -> list[str]:
    """What is below the floor, in words."""
    own = next(m for m in found if m.contestant == "octavo" and m.result.name == "W2")
    speedup = ratios(found)["W2"]["single"]
    result = []
    if speedup < LEAST_SPEEDUP:
        result.append(f"W2: {speedup:.1f}x transformers one at a time; the floor is {LEAST_SPEEDUP:.0f}x")
    waste = own.result.kv_waste_mean
    if waste is None or waste >= KV_WASTE_LIMIT:
        result.append(f"W2: KV waste {bench.percent(waste)}; the limit is {KV_WASTE_LIMIT:.0%}")
    return result


def render(found: Sequence[Measured]) -> Table:
    table = Table(title="medians (lowest..highest); a sample's rate is its tokens / its time")
    for column in ("workload", "engine", "requests"):
        table.add_column(column)
    headers = ("out tok/s", "total tok/s", "TTFT ms", "ITL p50 ms", "ITL p99 ms", "KV waste", "hit rate", "octavo is")
    for column in headers:
        table.add_column(column, justify="right")
    faster = ratios(found)
    for m in found:
        r = m.result
        spreads = (r.ttft_ms, r.itl_p50_ms, r.itl_p99_ms)
        table.add_row(
            r.name,
            TITLES[m.contestant],
            f"{m.sampled_requests} of {r.num_requests}" if m.sampled_requests < r.num_requests else f"{r.num_requests}",
            rate(m.output_tok_s, r.output_tok_s),
            rate(m.total_tok_s, r.total_tok_s),
            *("-" if spread is None else str(spread) for spread in spreads),
            bench.percent(r.kv_waste_mean),
            bench.percent(r.prefix_hit_rate),
            f"{faster[r.name][m.contestant]:.1f}x" if m.contestant != "octavo" else "",
            end_section=m.contestant == "static" or (m.contestant == "single" and r.num_requests == 1),
        )
    return table


def rate(value: float, spread: Spread) -> str:
    return str(Spread(value, spread.low, spread.high))


def report(found: Sequence[Measured], args: argparse.Namespace, environment: dict[str, object]) -> dict[str, object]:
    config = EngineConfig(model=args.model, dtype="bfloat16", num_threads=args.threads, itl_budget_s=NOBODY_WAITS_S)
    return environment | {
        "engine": bench.settings(config),
        "peers": {
            "single": "transformers generate, bf16, the same dequantised weights, one request at a time",
            "static": "the same in static left-padded batches of 16, each run to its longest output",
        },
        "note": "sampled_requests < num_requests: the peer ran an even sample; its rate is tokens / time of the sample",
        "floor": {"least_speedup_w2": LEAST_SPEEDUP, "most_kv_waste_w2": KV_WASTE_LIMIT, "missed": misses(found)},
        "disturbed": disturbed(found),
        "octavo_is_faster_by": ratios(found),
        "measured": [asdict(m) for m in found],
    }


def write(found: Sequence[Measured], args: argparse.Namespace, environment: dict[str, object]) -> Path:
    file = write_results("offline", report(found, args, environment))
    rates = {TITLES[c]: {m.result.name: m.output_tok_s for m in found if m.contestant == c} for c in TITLES}
    draw(rates, f"{bench.cpu_name()}, {args.threads} threads, bf16, {file.stem[-10:]}", file.with_suffix(".png"))
    return file


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or GGUF file of the llama architecture (default: the embedded one)")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--peer-requests", type=int, default=16, help="of W2's 64, run one at a time (the same share of W3)"
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: clipped workloads, no floor, no files")
    args = parser.parse_args()
    if args.quick:
        args.repeat = 1
    if args.repeat < 1 or not 1 <= args.peer_requests <= 64 or args.threads < 1:
        parser.error("--repeat and --threads are at least 1, --peer-requests is from 1 to 64")
    return args


def main() -> int:
    args = parse()
    clip = QUICK if args.quick else None
    # Now, while the load average does not count this run itself.
    environment = bench.environment()
    jobs = plan(args.repeat, args.peer_requests, clip)
    with count_bar("benchmark", len(jobs) + len(set(PROCESSES.values()))) as told:
        ran = list(execute(jobs, args, told))
    found = []
    for name in workloads.NAMES:
        for contestant in TITLES:
            of_it = [entry for entry in ran if (entry[0].workload, entry[0].contestant) == (name, contestant)]
            if of_it:
                done, seen, others = zip(*of_it, strict=True)
                found.append(measured(done, seen, others, clip))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(render(found))
    if args.quick:
        console.print("a smoke run: no floor is checked and nothing is written")
        return 0
    file = write(found, args, environment)
    console.print(f"written: {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file} and .png")
    for stage in disturbed(found):
        console.print(f"[bold yellow]disturbed, do not quote[/] {stage}")
    for miss in misses(found):
        console.print(f"[bold red]below the floor[/] {miss}")
    return 1 if misses(found) else 0


if __name__ == "__main__":
    sys.exit(main())
