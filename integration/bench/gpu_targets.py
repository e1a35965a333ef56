"""What a figure is to reach: beside it in its row. Knows no stage."""

from __future__ import annotations

from math import isnan

from gpu_timing import Row


def at_least(figure: float, target: float, first: float | None = None) -> Row:
    """`first` is what counts as a beginning. Nothing is said of what was not measured."""
    wanted = f">= {target:g}" + ("" if first is None else f" (first {first:g})")
    met = "met" if figure >= target else "first met" if first is not None and figure >= first else "missed"
    return {"target": wanted, "met": None if isnan(figure) else met}


def at_most(figure: float, target: float) -> Row:
    return {"target": f"<= {target:g}", "met": None if isnan(figure) else "met" if figure <= target else "missed"}
