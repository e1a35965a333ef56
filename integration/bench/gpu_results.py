"""What a run found: JSON that is rewritten after every row, and tables. Knows neither kernels nor the GPU."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from gpu_timing import Row

_JUDGED, _NOT_MET = ("met", "idle_met"), ("missed", "first met")
# Columns that only the JSON has.
_HIDDEN = {"low_us", "high_us", "repetitions", "bytes", "flops", "atol", "rtol"}


@dataclass(slots=True)
class Results:
    """Stages by name, each with its rows. Owns the file; without one nothing is written.

    Stages that the file has of the same commit and hardware stay: parts of one run may be commands of their own.
    """

    file: Path | None
    head: Row
    stages: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def at(cls, folder: Path | None, head: Row) -> Results:
        """In a file named after the hardware, the day and, unless it is a full run, the mode."""
        if folder is None:
            return cls(None, head)
        day = datetime.now(UTC).date().isoformat()
        name = re.sub(r"[^a-z0-9]+", "-", str(head["hardware"]["gpu"] or "no gpu").lower())
        mode = "" if head["mode"] == "full" else f"-{head['mode']}"
        file = folder / f"gpu-{name}-{day}{mode}.json"
        folder.mkdir(parents=True, exist_ok=True)
        return cls(file, {"date": day} | head, _stages_of(file, head))

    def begin(self, name: str, title: str) -> None:
        self.stages[name] = {"title": title, "seconds": None, "error": "was cut off", "rows": []}

    def add(self, name: str, row: Row) -> None:
        self.stages[name]["rows"].append(row)
        self.write()

    def end(self, name: str, seconds: float, error: str | None) -> None:
        self.stages[name] |= {"seconds": round(seconds, 1), "error": error}
        self.write()

    def write(self) -> None:
        """Beside the old file, then in its place: whoever is cut off leaves a whole one."""
        if self.file is None:
            return
        text = json.dumps(_finite(self.head | {"stages": self.stages}), indent=1)
        unfinished = self.file.with_suffix(".part")
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(self.file)

    def rows_of(self, name: str) -> list[Row]:
        """Of a stage; none where it was not run."""
        found: list[Row] = self.stages[name]["rows"] if name in self.stages else []
        return found

    @property
    def missed(self) -> list[str]:
        """Targets that were not met, in words: the figures that lead to them are in the row."""
        rows = [(name, row) for name, stage in self.stages.items() for row in stage["rows"]]
        return [f"stage {name}: {row}" for name, row in rows if any(row.get(key) in _NOT_MET for key in _JUDGED)]

    @property
    def failures(self) -> list[str]:
        """In words: stages that raised, cases that did, and checks that did not pass."""
        found = [f"stage {name}: {stage['error']}" for name, stage in self.stages.items() if stage["error"]]
        for name, stage in self.stages.items():
            wrong = [row for row in stage["rows"] if "error" in row or row.get("passed") is False]
            found += [f"stage {name}: {row}" for row in wrong]
        return found


def _stages_of(file: Path, head: Row) -> dict[str, Row]:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = all(known.get(key) == head[key] for key in ("commit", "mode"))
    return known["stages"] if same else {}


def _finite(value: object) -> object:
    """JSON has no NaN: None."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, rows: Sequence[Row]) -> None:
    """By rich where it is installed."""
    columns = list(dict.fromkeys(key for row in rows for key in row if not _is_hidden(key)))
    lines = [[_cell(row, column) for column in columns] for row in rows]
    if find_spec("rich") is None:
        print(title, "\t".join(columns), *("\t".join(line) for line in lines), sep="\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*line)
    # Wide also where the output is a file.
    Console(markup=False, width=None if sys.stdout.isatty() else 180).print(table)


def _is_hidden(column: str) -> bool:
    return column in _HIDDEN or column.endswith("_refused")


def _cell(row: Row, column: str) -> str:
    value = row.get(column)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if column == "us":
        return f"{_number(value)} ({_number(row['low_us'])}..{_number(row['high_us'])})"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
