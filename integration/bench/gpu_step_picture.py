"""The picture of decode steps beside their roofline, over the batch. Knows rows only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of backend


def draw(rows: Sequence[dict[str, float]], title: str, file: Path) -> None:
    """rows: "batch", "step_ms", "roof_ms". Writes a PNG."""
    batches = [row["batch"] for row in rows]
    figure, panel = plt.subplots(figsize=(7.5, 5))
    panel.plot(batches, [row["step_ms"] for row in rows], marker="o", color="#1b6ca8", label="a step")
    panel.plot(batches, [row["roof_ms"] for row in rows], color="#444444", label="serial roofline of this GPU")
    for row in rows:
        share = row["roof_ms"] / row["step_ms"]
        panel.annotate(f"{share:.0%}", (row["batch"], row["step_ms"]), xytext=(0, 7), textcoords="offset points")
    panel.set(xscale="log", ylim=(0, None), xlabel="sequences in the batch", ylabel="ms", title=title)
    panel.set_xticks(batches, [str(batch) for batch in batches])
    panel.minorticks_off()
    panel.legend(loc="upper left", frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    plt.close(figure)
