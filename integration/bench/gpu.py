"""GPU kernels on the machine at hand: right, and how fast, as fractions of what the GPU itself reaches in the same run.

One command for all stages or some; results are JSON, rewritten after every row, tables, and a roofline picture. Needs
torch, triton and numpy, nothing installed. --dry-run takes every path without a GPU, in the interpreter, untimed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from time import perf_counter
from traceback import print_exc
from unittest.mock import patch

import bare_octavo  # before everything that imports octavo
import gpu_attention
import gpu_checks
import gpu_machine
import gpu_row_checks
import gpu_rows
import gpu_sampling
import numpy as np
import torch
from gpu_results import Results, print_table
from gpu_timing import Bench, Row
from kernels.triton_support import interpreted


@dataclass(frozen=True, slots=True)
class Stage:
    title: str
    run: Callable[[Bench], Iterator[Row]]
    is_timed: bool = True


STAGES = {
    "0": Stage("the machine", gpu_machine.run, is_timed=False),
    "1a": Stage("attention is right", gpu_checks.run, is_timed=False),
    "1b": Stage("row-wise kernels are right", gpu_row_checks.run, is_timed=False),
    "1c": Stage("the sampler is right", gpu_row_checks.run_sampling, is_timed=False),
    "2": Stage("decode attention", gpu_attention.run_decode),
    "3a": Stage("prefill attention", gpu_attention.run_prefill),
    "3b": Stage("row-wise kernels", gpu_rows.run),
    "3c": Stage("the sampler", gpu_sampling.run),
}
LATER = ("engine", "online", "start-up")
PICTURED = {"2": "decode attention", "3a": "prefill attention", "3b": "row-wise kernels", "3c": "sampler"}


def selected(text: str) -> tuple[list[str], list[str]]:
    """Stages in their order, "1" for 1a, 1b and 1c; and those asked for that are not there yet."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in LATER and not any(s.startswith(name) for s in STAGES)]
    if unknown or "" in names:
        raise argparse.ArgumentTypeError(f"stages are {', '.join([*STAGES, *LATER])}; got {text!r}")
    return [s for s in STAGES if s.startswith(tuple(names))], [name for name in LATER if name in names]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = ", ".join(f"{name} ({stage.title})" for name, stage in STAGES.items())
    parser.add_argument("--stages", type=selected, default=selected("0,1,2,3"), help=f"{stages}; 1 means 1a, 1b, 1c")
    parser.add_argument("--quick", action="store_true", help="every other case, fewer repetitions")
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
        for row in stage.run(bench):
            results.add(name, row)
    except Exception as raised:
        print_exc()
        error = f"{type(raised).__name__}: {raised}"[:500]
    results.end(name, perf_counter() - begin, error)
    print_table(f"{name}: {stage.title}, {results.stages[name]['seconds']} s", results.stages[name]["rows"])


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
    timed = {
        title: [row for row in results.stages[name]["rows"] if row.get("us") and not isnan(row["us"])]
        for name, title in PICTURED.items()
        if name in results.stages
    }
    is_known = results.file is not None and not isnan(bench.flops_per_s)
    if not is_known or not any(timed.values()) or find_spec("matplotlib") is None:
        return
    from gpu_roofline import draw as draw_roofline

    title = f"Octavo's kernels, {results.head['hardware']['gpu']}"
    draw_roofline(timed, (bench.copy_bytes_per_s, bench.flops_per_s), title, results.file.with_suffix(".png"))


def main() -> int:
    args = arguments()
    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU here: --dry-run takes every path without one")
    device = torch.device("cpu" if args.dry_run else "cuda")
    mode = "dry" if args.dry_run else "quick" if args.quick else "full"
    head = {"commit": args.commit or commit(), "mode": mode}
    head |= {"hardware": gpu_machine.hardware(device), "versions": gpu_machine.versions()}
    results, bench = Results.at(results_folder(args), head), Bench(device, mode)
    stages, later = args.stages
    for name in later:
        print(f"stage {name}: not there yet")
    with torch.inference_mode(), ExitStack() as stack:
        if args.dry_run:
            stack.enter_context(in_interpreter())
        for i, name in enumerate(stages):
            run_stage(name, bench, results)
            if is_lost(bench) and stages[i + 1 :]:
                go_on_in_another_process(stages[i + 1 :])
        draw(results, bench)
    for failure in results.failures:
        print("FAILED", failure)
    print(f"results: {results.file}" if results.file else "nothing was timed")
    return 1 if results.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
