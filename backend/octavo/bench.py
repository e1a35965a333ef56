"""Runs the workloads on an engine in this process and says how fast it was: medians, spread, JSON, a table.

Greedy, EOS ignored, token ids only. Knows no other engine and no text; it looks at the engine from outside.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import chain, pairwise
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

from rich.table import Table

from octavo import workloads
from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.errors import InvalidRequest
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams
from octavo.stats import percentile
from octavo.workloads import Workload

OnStage = Callable[[str, int, int], None]
KV_WASTE_LIMIT = 0.04
_PACKAGES = ("octavo", "torch", "numpy", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """What was seen while a workload, or a part of one, ran once.

    Times in seconds. `ttft_s`: a request's first token, since all were submitted, one entry a request. `itl_s`: gaps
    between the tokens of a request, over all requests. `kv_waste`: EngineStats.kv_cache_waste after every step.
    """

    wall_s: float
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    ttft_s: Sequence[float] = ()
    itl_s: Sequence[float] = ()
    kv_waste: Sequence[float] = ()
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None for no values."""
        return cls(median(values), min(values), max(values)) if values else None

    def __str__(self) -> str:
        digits = 0 if self.median >= 1000 else 1 if self.median >= 100 else 2
        return f"{self.median:.{digits}f}\n({self.low:.{digits}f}..{self.high:.{digits}f})"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadResult:
    """One workload's figures. None where nothing was measured.

    Requests and tokens are those of one repetition. `ttft_ms` and `itl_..._ms` are over the requests or gaps of a
    repetition, then over repetitions; `kv_waste_mean` is a fraction over all steps, `prefix_hit_rate` a fraction of
    the prompt tokens.
    """

    name: str
    title: str
    repeat: int
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    shortest_and_longest_prompt: tuple[int, int]
    shortest_and_longest_output: tuple[int, int]
    wall_s: Spread
    output_tok_s: Spread
    total_tok_s: Spread
    ttft_ms: Spread | None
    itl_p50_ms: Spread | None
    itl_p99_ms: Spread | None
    kv_waste_mean: float | None
    kv_waste_max: float | None
    prefix_hit_rate: float | None
    num_preemptions: int


def run(
    config: EngineConfig, names: Sequence[str], repeat: int, on_progress: OnStage | None = None
) -> list[WorkloadResult]:
    """Loads the model, warms up, and runs each workload `repeat` times, in turns, so that a slow minute hits all.

    `on_progress(stage, done, total)` is told before every stage and at the end. Raises InvalidRequest for a workload
    that is unknown or longer than the context, ModelLoadError for the model.
    """
    if repeat < 1:
        raise InvalidRequest("repeat", repeat, "at least 1")
    told = on_progress or (lambda stage, done, total: None)
    total = 1 + repeat * len(names)
    vocab_size = open_checkpoint(config.model).vocab_size
    chosen = [workloads.make(name, vocab_size) for name in names]
    told("loading", 0, total)
    engine = Engine.from_config(config)
    try:
        for workload in chosen:
            check_fits(engine, workload)
        warm_up(engine, vocab_size)
        seen: dict[str, list[Repetition]] = {name: [] for name in names}
        for i in range(repeat):
            for j, workload in enumerate(chosen):
                told(f"{workload.name} {workload.title}", 1 + i * len(chosen) + j, total)
                seen[workload.name].append(run_once(engine, workload, salt=str(i)))
        told("done", total, total)
    finally:
        engine.shutdown()
    return [summarize(workload, seen[workload.name]) for workload in chosen]


def check_fits(engine: Engine, workload: Workload) -> None:
    """Raises InvalidRequest when the context is too short: the engine would cut the output."""
    context = engine.config.max_model_len
    assert context is not None
    if workload.longest > context:
        raise InvalidRequest(
            "workload", workload.name, f"one that fits into max_model_len = {context}; it needs {workload.longest}"
        )


def warm_up(engine: Engine, vocab_size: int) -> None:
    """A few short requests, so that what is made at first use has been made."""
    for name in workloads.NAMES[:2]:
        run_once(engine, workloads.make(name, vocab_size).clipped(8, 64, 8), salt="warm-up")


def run_once(engine: Engine, workload: Workload, salt: str) -> Repetition:
    """Submits all requests and steps until the last token. Each `salt` of a workload starts with an empty cache."""
    before = engine.stats()
    kv_waste: list[float] = []
    times: dict[str, list[float]] = {}
    tokens = 0
    start = perf_counter()
    for i, item in enumerate(workload.items):
        request_id = f"{workload.name}-{salt}-{i}"
        times[request_id] = []
        params = SamplingParams(temperature=0, max_tokens=item.num_output_tokens, ignore_eos=True)
        engine.add_request(
            EngineRequest(
                request_id=request_id,
                prompt_token_ids=item.prompt_token_ids,
                params=params,
                seed=0,
                cache_salt=f"{workload.name}-{salt}",
            )
        )
    while engine.has_work:
        outputs = engine.step()
        now = perf_counter()
        for output in outputs:
            times[output.request_id] += [now] * len(output.token_ids)
            tokens += len(output.token_ids)
        stats = engine.stats()
        if stats.num_requests_running:
            kv_waste.append(stats.kv_cache_waste)
    wall_s = perf_counter() - start
    after = engine.stats()
    assert tokens == workload.num_output_tokens, f"{workload.name}: {tokens} tokens came out"
    return Repetition(
        wall_s=wall_s,
        num_requests=len(workload.items),
        num_prompt_tokens=workload.num_prompt_tokens,
        num_output_tokens=tokens,
        ttft_s=[when[0] - start for when in times.values()],
        itl_s=[gap for when in times.values() for gap in gaps(when)],
        kv_waste=kv_waste,
        num_queried_tokens=after.prefix_cache_queries_total - before.prefix_cache_queries_total,
        num_hit_tokens=after.prefix_cache_hits_total - before.prefix_cache_hits_total,
        num_preemptions=after.preemptions_total - before.preemptions_total,
    )


def gaps(times: Sequence[float]) -> list[float]:
    """The time between neighbours."""
    return [later - earlier for earlier, later in pairwise(times)]


def summarize(workload: Workload, repetitions: Sequence[Repetition]) -> WorkloadResult:
    """Medians and spread over the repetitions of `workload`."""
    waste = list(chain.from_iterable(r.kv_waste for r in repetitions))
    queried = sum(r.num_queried_tokens for r in repetitions)
    prompts = [len(item.prompt_token_ids) for item in workload.items]
    lengths = [item.num_output_tokens for item in workload.items]
    wall_s = Spread.of([r.wall_s for r in repetitions])
    output_tok_s = Spread.of([r.num_output_tokens / r.wall_s for r in repetitions])
    total_tok_s = Spread.of([(r.num_prompt_tokens + r.num_output_tokens) / r.wall_s for r in repetitions])
    assert wall_s and output_tok_s and total_tok_s, "nothing was measured"
    return WorkloadResult(
        name=workload.name,
        title=workload.title,
        repeat=len(repetitions),
        num_requests=len(workload.items),
        num_prompt_tokens=workload.num_prompt_tokens,
        num_output_tokens=workload.num_output_tokens,
        shortest_and_longest_prompt=(min(prompts), max(prompts)),
        shortest_and_longest_output=(min(lengths), max(lengths)),
        wall_s=wall_s,
        output_tok_s=output_tok_s,
        total_tok_s=total_tok_s,
        ttft_ms=Spread.of([percentile(r.ttft_s, 0.5) * 1e3 for r in repetitions if r.ttft_s]),
        itl_p50_ms=Spread.of([percentile(r.itl_s, 0.5) * 1e3 for r in repetitions if r.itl_s]),
        itl_p99_ms=Spread.of([percentile(r.itl_s, 0.99) * 1e3 for r in repetitions if r.itl_s]),
        kv_waste_mean=fmean(waste) if waste else None,
        kv_waste_max=max(waste) if waste else None,
        prefix_hit_rate=sum(r.num_hit_tokens for r in repetitions) / queried if queried else None,
        num_preemptions=sum(r.num_preemptions for r in repetitions),
    )


def render(results: Sequence[WorkloadResult]) -> Table:
    """The results, a row a workload: median, and below it lowest..highest."""
    table = Table(title="medians (lowest..highest of the repetitions)")
    for column in ("workload", "requests", "tokens"):
        table.add_column(column)
    for column in ("out tok/s", "total tok/s", "TTFT ms", "ITL p50 ms", "ITL p99 ms", "KV waste", "hit rate"):
        table.add_column(column, justify="right")
    for r in results:
        figures = (r.output_tok_s, r.total_tok_s, r.ttft_ms, r.itl_p50_ms, r.itl_p99_ms)
        table.add_row(
            f"{r.name}\n{r.title}",
            f"{r.num_requests} x {r.repeat}",
            f"{r.num_prompt_tokens:,}\n+ {r.num_output_tokens:,}",
            *("-" if figure is None else str(figure) for figure in figures),
            percent(r.kv_waste_mean),
            percent(r.prefix_hit_rate),
        )
    return table


def percent(fraction: float | None) -> str:
    """For a table: one decimal, "-" for None."""
    return "-" if fraction is None else f"{fraction * 100:.1f} %"


def to_json(results: Sequence[WorkloadResult], config: EngineConfig) -> str:
    """The results with what is needed to judge them: machine, versions, commit, model, settings."""
    report = environment() | {"engine": settings(config), "results": [asdict(result) for result in results]}
    return json.dumps(report, indent=2)


def settings(config: EngineConfig) -> dict[str, object]:
    """What of the configuration a measurement depends on; the model by its name, not by where it lies."""
    names = (
        "dtype", "device", "block_size", "max_num_seqs", "max_num_batched_tokens", "long_prefill_token_threshold",
        "itl_budget_s", "enable_prefix_caching", "kv_cache_memory_bytes", "num_gpu_blocks_override",
    )  # fmt: skip
    model = open_checkpoint(config.model).path.name
    threads = config.num_threads or len(os.sched_getaffinity(0))
    return {"model": model, "num_threads": threads} | {name: getattr(config, name) for name in names}


def environment() -> dict[str, object]:
    """Machine, versions, commit; as of now the date and the load average, in which a run that is over counts too."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": cpu_name(),
        "num_cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def cpu_name() -> str:
    """As the kernel calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _commit() -> str | None:
    """Of the checkout that this file's package is tracked in, with "-dirty" for local changes; None elsewhere."""
    here = str(Path(__file__).parent)
    if _first_line("git", "-C", here, "ls-files", "__init__.py") is None:
        return None
    return _first_line("git", "-C", here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)
