"""One engine in a process of its own: reads a job a line on stdin, answers with a Repetition as a line of JSON.

Started by offline.py. Between jobs it only waits, so that its threads do not disturb whoever is measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from dataclasses import asdict
from typing import Protocol

from octavo import bench, workloads
from octavo.bench import Repetition
from octavo.checkpoint import open_checkpoint
from octavo.config import NOBODY_WAITS_S, EngineConfig
from octavo.engine import Engine
from octavo.workloads import Workload


class Contestant(Protocol):
    """What is measured."""

    def warm_up(self) -> None: ...
    def run_once(self, workload: Workload, salt: str, batch_size: int) -> Repetition: ...
    def shutdown(self) -> None: ...


class Octavo:
    """The engine of this project."""

    def __init__(self, model: str | None, num_threads: int) -> None:
        config = EngineConfig(model=model, dtype="bfloat16", num_threads=num_threads, itl_budget_s=NOBODY_WAITS_S)
        self._engine = Engine.from_config(config)
        self._vocab_size = open_checkpoint(model).vocab_size

    def warm_up(self) -> None:
        bench.warm_up(self._engine, self._vocab_size)

    def run_once(self, workload: Workload, salt: str, batch_size: int) -> Repetition:
        """All requests at once, whatever the batch size: batches are the engine's own business."""
        bench.check_fits(self._engine, workload)
        return bench.run_once(self._engine, workload, salt)

    def shutdown(self) -> None:
        self._engine.shutdown()


def open_contestant(name: str, model: str | None, num_threads: int) -> Contestant:
    if name == "octavo":
        return Octavo(model, num_threads)
    # Looked up late so that Octavo's own process never loads transformers.
    peer = importlib.import_module("peer")
    contestant: Contestant = peer.TransformersPeer(model, num_threads)
    return contestant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=("octavo", "transformers"))
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    # Answers keep the real stdout to themselves; whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contestant = open_contestant(args.contestant, args.model, args.threads)
    vocab_size = open_checkpoint(args.model).vocab_size
    contestant.warm_up()
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        job = json.loads(line)
        workload = workloads.make(job["workload"], vocab_size)
        if job["clip"]:
            workload = workload.clipped(*job["clip"])
        repetition = contestant.run_once(workload.part(job["indices"]), job["salt"], job["batch_size"])
        print(json.dumps(asdict(repetition)), file=answers)
    contestant.shutdown()


if __name__ == "__main__":
    main()
