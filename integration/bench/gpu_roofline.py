"""The roofline picture: every timed row over what its bytes and operations allow. Knows rows only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of backend

COLOURS = ("#1b6ca8", "#d1495b", "#edae49", "#66a182")


def draw(
    series: Mapping[str, Sequence[dict[str, float]]], ceilings: tuple[float, float], title: str, file: Path
) -> None:
    """series: rows with "us", "bytes" and "flops". ceilings: bytes and FLOPs a second. Writes a PNG.

    Rows without operations (they only move numbers) stand at one operation a byte.
    """
    bandwidth, rate = ceilings
    figure, panel = plt.subplots(figsize=(7.5, 5))
    intensities = [0.5, rate / bandwidth, rate / bandwidth * 64]
    roof = [min(x * bandwidth, rate) / 1e12 for x in intensities]
    panel.plot(intensities, roof, color="#444444", label="measured roof")
    for (name, rows), colour in zip(series.items(), COLOURS, strict=False):
        operations = [row["flops"] or row["bytes"] for row in rows]
        x = [count / row["bytes"] for count, row in zip(operations, rows, strict=True)]
        y = [count / row["us"] / 1e6 for count, row in zip(operations, rows, strict=True)]
        panel.scatter(x, y, s=18, alpha=0.7, color=colour, label=name)
    panel.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="TFLOP/s", title=title)
    panel.legend(loc="lower right", frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
