"""Which stages gpu.py has: what each is called, what runs it, and how long it takes. Imports none of them."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu_timing import Bench, Row

# A command on a borrowed machine may be cut off after this.
MOST_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Stage:
    """`source` is "module:function"; `seconds` an estimate for an H200 with nothing compiled yet."""

    title: str
    source: str
    seconds: int
    is_timed: bool = True

    def load(self) -> Callable[[Bench], Iterator[Row]]:
        """Imports what runs it: an engine that cannot be imported must not keep the kernels from being measured."""
        module, _, function = self.source.partition(":")
        found: Callable[[Bench], Iterator[Row]] = getattr(importlib.import_module(module), function)
        return found


STAGES = {
    "0": Stage("the machine", "gpu_machine:run", 15, is_timed=False),
    "1a": Stage("attention is right", "gpu_checks:run", 180, is_timed=False),
    "1b": Stage("row-wise kernels are right", "gpu_row_checks:run", 60, is_timed=False),
    "1c": Stage("the sampler is right", "gpu_row_checks:run_sampling", 60, is_timed=False),
    "1d": Stage("the engine is right", "gpu_engine_checks:run", 90, is_timed=False),
    "2": Stage("decode attention", "gpu_attention:run_decode", 150),
    "3a": Stage("prefill attention", "gpu_attention:run_prefill", 60),
    "3b": Stage("row-wise kernels", "gpu_rows:run", 60),
    "3c": Stage("the sampler", "gpu_sampling:run", 60),
    "4": Stage("decode step of an 8B model", "gpu_decode_step:run", 100),
    "5": Stage("prefill of an 8B model", "gpu_prefill:run", 60),
    "6": Stage("offline", "gpu_offline:run", 190),
    "7": Stage("the same through transformers", "gpu_peers:run", 450),
    "8": Stage("online, one 32k prompt among short ones", "gpu_online:run", 100),
    "9": Stage("random aborts leak nothing", "gpu_aborts:run", 90, is_timed=False),
    "10": Stage("start-up", "gpu_startup:run", 150, is_timed=False),
}

# What one command may be, each with the ceilings that its fractions are of. Stage 7 looks at what stage 6 found.
GROUPS = ("0,1,2", "0,3,4,5,8,9", "0,6,10", "0,7")


def selected(text: str) -> list[str]:
    """Stages in their order; "1" stands for 1a to 1d, not for 10. Raises ArgumentTypeError."""
    names = [name.strip() for name in text.split(",")]
    groups = {name: [s for s in STAGES if re.fullmatch(f"{re.escape(name)}[a-z]?", s)] for name in names}
    if not all(groups.values()):
        raise argparse.ArgumentTypeError(f"stages are {', '.join(STAGES)}; got {text!r}")
    wanted = {stage for group in groups.values() for stage in group}
    return [s for s in STAGES if s in wanted]


def estimate_s(stages: list[str], is_quick: bool) -> float:
    """How long these take together; a quick run halves it."""
    return sum(STAGES[name].seconds for name in stages) / (2 if is_quick else 1)


def described() -> str:
    """For --help: a line a stage."""
    lines = [f"  {name:<3} {stage.title}, about {stage.seconds} s" for name, stage in STAGES.items()]
    groups = f"commands of less than {MOST_SECONDS} s: --stages {', --stages '.join(GROUPS)}"
    return "\n".join(["stages (1 means 1a to 1d; --quick halves the times):", *lines, groups])
