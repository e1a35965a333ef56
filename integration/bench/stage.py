"""What every measurement needs around it: how busy the machine was with something else, and where results go."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from octavo import bench

RESULTS = Path(__file__).parent / "results"


@dataclass(slots=True)
class Load:
    """How many cores other processes used during a stage. Owns the readings at its beginning."""

    start_s: float = field(default_factory=time.time)
    busy_s: float = field(default_factory=lambda: busy_seconds())
    own_s: float = field(default_factory=lambda: own_seconds())

    def others(self) -> float:
        """Cores, on average since the beginning."""
        used = (busy_seconds() - self.busy_s) - (own_seconds() - self.own_s)
        return round(max(used, 0.0) / max(time.time() - self.start_s, 1e-3), 2)


def busy_seconds() -> float:
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq + times.steal


def own_seconds() -> float:
    me = psutil.Process()
    return sum(t.user + t.system for t in (p.cpu_times() for p in [me, *me.children(recursive=True)]))


def write_results(name: str, found: dict[str, object]) -> Path:
    """Writes JSON named after the measurement, the processor and the day; returns the file."""
    cpu = re.sub(r"[^a-z0-9]+", "-", bench.cpu_name().lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}-{cpu}-{datetime.now(UTC).date().isoformat()}.json"
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return file
