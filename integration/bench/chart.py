"""A bar chart of rates: a panel a workload, a bar an engine. Knows nothing of how they were measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of backend

COLOURS = ("#1b6ca8", "#b0b7bf", "#7d8790")


def draw(rates: Mapping[str, Mapping[str, float]], title: str, file: Path) -> None:
    """`rates`: output tokens a second, by engine and workload. Writes a PNG."""
    names = sorted({name for by_workload in rates.values() for name in by_workload})
    figure, panels = plt.subplots(1, len(names), figsize=(3.1 * len(names), 4.2), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for i, (engine, by_workload) in enumerate(rates.items()):
            if name in by_workload:
                bars = panel.bar(i, by_workload[name], color=COLOURS[i % len(COLOURS)], label=engine)
                panel.bar_label(bars, fmt="{:.3g}")
        panel.set_title(name)
        panel.set_xticks([])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("output tokens / s (more is better)")
    handles = {label: h for p in panels[0] for h, label in zip(*p.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="lower center", ncols=len(handles), frameon=False)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(file, dpi=120)
    plt.close(figure)
