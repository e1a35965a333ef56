"""The comparison as a person reads it: tables for the terminal, and a picture. Knows nothing of how it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import peer_report
from peer_report import BY_NAME, HIGHER_IS_BETTER, METRICS, Ratio, Results
from rich.table import Table

from octavo.bench import Spread

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # after the choice of backend

TITLES = {
    "first_token_s": "start to first token, s",
    "itl_ms": "between tokens, ms",
    "ttft_ms": "first token, ms",
    "output_tok_s": "output tokens / s",
    "total_tok_s": "all tokens / s",
    "itl_p50_ms": "between tokens p50, ms",
    "itl_p99_ms": "between tokens p99, ms",
    "ttft_p50_ms": "first token p50, ms",
    "ttft_p99_ms": "first token p99, ms",
}
VERDICT_STYLES = {"met": "[bold green]met[/]", "missed": "[bold red]missed[/]"}
PRECISION_COLOURS = {"bf16": "#7d8790", "int8": "#a3abb3", "4-bit": "#c4cad0"}
OUR_COLOURS = {"bf16": "#1b6ca8", "int8": "#4d95c9", "4-bit": "#8fbfe0"}
NUM_COLUMNS = 4


def figures_table(results: Results, workload: str) -> Table:
    """One workload: a row a contestant."""
    table = Table(title=f"{workload}: medians (lowest..highest of the rounds)")
    for column in ("engine", "precision", "weights"):
        table.add_column(column)
    metrics = METRICS[workload]
    for metric in metrics:
        table.add_column(TITLES[metric], justify="right")
    for contestant in results.measured(workload):
        spreads = [results.spread(contestant.name, workload, metric) for metric in metrics]
        nth = contestant.every_nth.get(workload, 1)
        title = contestant.title + (f" (every {nth}. request)" if nth > 1 else "")
        table.add_row(title, contestant.precision, contestant.weights, *map(_cell, spreads))
    return table


def ratios_table(found: Sequence[Ratio]) -> Table:
    """Ours by the best peer's, with the targets."""
    table = Table(title="ours / best peer of the same precision (medians of the rounds' ratios)")
    for column in ("workload", "figure", "ours", "precision", "best peer"):
        table.add_column(column)
    for column in ("ratio", "target", ""):
        table.add_column(column, justify="right")
    for ratio in found:
        ours, peer = BY_NAME[ratio.ours], BY_NAME.get(ratio.peer or "")
        better = "more is better" if ratio.metric in HIGHER_IS_BETTER else "less is better"
        table.add_row(
            ratio.workload,
            f"{TITLES[ratio.metric]} ({better})",
            ours.title,
            ours.precision,
            peer.title if peer else "-",
            _cell(ratio.ratio),
            str(ratio.target) if ratio.target else "",
            VERDICT_STYLES.get(ratio.verdict, ratio.verdict),
        )
    return table


def agreement_table(results: Results) -> Table:
    """Whether the same model was computed."""
    table = Table(title="greedy tokens equal to Octavo's in bf16")
    for column in ("engine", "precision", "version"):
        table.add_column(column)
    for column in ("W1, up to the first other one", "W2, first tokens"):
        table.add_column(column, justify="right")
    for name, agreement in peer_report.agreements(results).items():
        contestant = BY_NAME[name]
        prefix = "-" if agreement.common_prefix is None else f"{agreement.common_prefix} of {agreement.num_tokens}"
        share = "-" if agreement.first_tokens is None else f"{agreement.first_tokens:.0%}"
        table.add_row(contestant.title, contestant.precision, results.versions.get(name, "-"), prefix, share)
    return table


def draw(results: Results, title: str, file: Path) -> None:
    """Writes a PNG: a panel a workload with its first figure, a bar a contestant, whiskers over the rounds."""
    shown = [workload for workload in METRICS if results.measured(workload)]
    num_rows = -(-len(shown) // NUM_COLUMNS)
    figure, panels = plt.subplots(num_rows, NUM_COLUMNS, figsize=(5.2 * NUM_COLUMNS, 4.0 * num_rows), squeeze=False)
    for panel in panels.flat[len(shown) :]:
        panel.set_visible(False)
    for panel, workload in zip(panels.flat, shown, strict=False):
        metric = METRICS[workload][0]
        spreads = [(c, results.spread(c.name, workload, metric)) for c in reversed(results.measured(workload))]
        measured = [(c, spread) for c, spread in spreads if spread is not None]
        bars = panel.barh(
            [f"{c.title}, {c.precision}" for c, _ in measured],
            [spread.median for _, spread in measured],
            xerr=[[s.median - s.low for _, s in measured], [s.high - s.median for _, s in measured]],
            color=[(OUR_COLOURS if c.is_ours else PRECISION_COLOURS)[c.precision] for c, _ in measured],
            ecolor="#333333",
        )
        panel.bar_label(bars, fmt="{:.3g}", padding=3, fontsize=8)
        panel.tick_params(labelsize=8)
        panel.margins(x=0.18)
        better = "more" if metric in HIGHER_IS_BETTER else "less"
        panel.set_title(f"{workload}: {TITLES[metric]} ({better} is better)", fontsize=9, loc="right")
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _cell(spread: Spread | None) -> str:
    return "-" if spread is None else str(spread).replace("\n", " ")
