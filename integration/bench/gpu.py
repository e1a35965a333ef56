"""Kernels and engine on the GPU at hand: right, and how fast, as fractions of what it reaches itself in the same run.

One command for all stages or some; results are JSON, rewritten after every row, tables, and pictures. Needs torch,
triton and numpy, the peers transformers, nothing installed. --dry-run takes every path without a GPU, tiny and untimed.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from itertools import groupby
from math import isnan
from pathlib import Path
from time import perf_counter
from traceback import print_exc
from unittest.mock import patch

import bare_octavo  # before everything that imports octavo
import gpu_machine
import numpy as np
import torch
from gpu_results import Results, print_table
from gpu_stages import MOST_SECONDS, STAGES, described, estimate_s, selected
from gpu_timing import Bench
from kernels.triton_support import interpreted

PICTURED = {"2": "decode attention", "3a": "prefill attention", "3b": "row-wise kernels", "3c": "sampler"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = described()
    parser.add_argument("--stages", type=selected, default=selected("0,1,2,3"), help="see below (default: 0,1,2,3)")
    parser.add_argument("--quick", action="store_true", help="every other case, fewer repetitions: about half the time")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, nothing timed")
    parser.add_argument("--out", type=Path, help="folder for results (default: bench/results; of a dry run none)")
    parser.add_argument("--commit", help="where git cannot tell")
    return parser.parse_args()


def commit() -> str:
    """What is measured; "+" for changes that are in no commit."""
    command = ["git", "-C", str(bare_octavo.REPOSITORY)]
    try:
        head, changes = (
            subprocess.run([*command, *rest], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
            for rest in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + "+" * bool(changes)


def results_folder(args: argparse.Namespace) -> Path | None:
    if args.out or args.dry_run:
        return args.out
    return Path(__file__).parent / "results"


@contextmanager
def in_interpreter() -> Iterator[None]:
    """Kernels run on CPU tensors. Products are summed in one order wherever a row stands, as a tensor core does."""

    def matmul(left: np.ndarray, right: np.ndarray, dtype: object = None) -> np.ndarray:
        return (left[:, :, None] * right[None]).sum(1, dtype=dtype)

    with interpreted(), np.errstate(all="ignore"), patch.object(np, "matmul", matmul):
        yield


def run_stage(name: str, bench: Bench, results: Results) -> None:
    stage, begin, error = STAGES[name], perf_counter(), None
    results.begin(name, stage.title)
    try:
        if stage.is_timed and not bench.is_dry and isnan(bench.flops_per_s):
            gpu_machine.measure_ceilings(bench)
        for row in stage.load()(bench):
            results.add(name, row)
    except Exception as raised:
        print_exc()
        error = f"{type(raised).__name__}: {raised}"[:500]
    results.end(name, perf_counter() - begin, error)
    # Rows that begin alike are a table.
    for i, (_, rows) in enumerate(groupby(results.rows_of(name), key=lambda row: next(iter(row)))):
        print_table(f"{name}: {stage.title}, {results.stages[name]['seconds']} s" * (i == 0), list(rows))


def preload(stages: list[str]) -> None:
    """The interpreter finds the kernels that have been imported. A stage that cannot be says so when it runs."""
    for name in stages:
        with suppress(Exception):
            STAGES[name].load()


def is_lost(bench: Bench) -> bool:
    """Whether an error of a kernel left the GPU unusable for this process."""
    if bench.is_dry:
        return False
    try:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def go_on_in_another_process(stages: list[str]) -> None:
    """With the stages that are left, into the same file."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.argv, "--stages", ",".join(stages)])


def draw(results: Results, bench: Bench) -> None:
    if results.file is None or isnan(bench.flops_per_s) or find_spec("matplotlib") is None:
        return
    # Late: where matplotlib is missing they cannot be imported.
    import gpu_roofline
    import gpu_step_picture

    timed = {
        title: [row for row in results.rows_of(name) if row.get("us") and not isnan(row["us"])]
        for name, title in PICTURED.items()
    }
    gpu = results.head["hardware"]["gpu"]
    if any(timed.values()):
        ceilings = bench.copy_bytes_per_s, bench.flops_per_s
        gpu_roofline.draw(timed, ceilings, f"Octavo's kernels, {gpu}", results.file.with_suffix(".png"))
    steps = [row for row in results.rows_of("4") if row.get("step_ms")]
    if steps:
        title = f"Decode steps, Llama-3.1-8B's shape, bf16, context 1k, {gpu}"
        gpu_step_picture.draw(steps, title, results.file.with_name(results.file.stem + "-steps.png"))


def main() -> int:
    args = arguments()
    # The memory plan, fallbacks, what start-up took.
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("octavo").setLevel(logging.INFO)
    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --dry-run takes every path without one")
    device = torch.device("cpu" if args.dry_run else "cuda")
    mode = "dry" if args.dry_run else "quick" if args.quick else "full"
    head = {"commit": args.commit or commit(), "mode": mode}
    head |= {"hardware": gpu_machine.hardware(device), "versions": gpu_machine.versions()}
    results = Results.at(results_folder(args), head)
    bench, stages = Bench(device, mode, rows_of=results.rows_of), args.stages
    seconds = estimate_s(stages, args.quick)
    if not args.dry_run:
        print(f"about {seconds:.0f} s", "- more than one command may take there" * (seconds > MOST_SECONDS), flush=True)
    with torch.inference_mode(), ExitStack() as stack:
        if args.dry_run:
            preload(stages)
            stack.enter_context(in_interpreter())
        for i, name in enumerate(stages):
            run_stage(name, bench, results)
            if is_lost(bench) and stages[i + 1 :]:
                go_on_in_another_process(stages[i + 1 :])
        draw(results, bench)
    for miss in results.missed:
        print("TARGET MISSED", miss)
    for failure in results.failures:
        print("FAILED", failure)
    print(f"results: {results.file}" if results.file else "nothing was timed")
    return 1 if results.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
