"""What the rounds of all contestants come to: medians, ratios to the best peer, verdicts, and whether texts agree.

Ratios are ours by the best peer's of the same precision, round by round. Knows no process and no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from statistics import median
from typing import Any

from peer_contestants import CONTESTANTS, OURS, START, Contestant

from octavo.bench import Spread

BY_NAME = {contestant.name: contestant for contestant in CONTESTANTS}
# What is shown of each workload. Of what is in HIGHER_IS_BETTER more is better, of all others less.
METRICS = {
    START: ("first_token_s",),
    "W1": ("itl_ms", "ttft_ms"),
    "W2": ("output_tok_s", "total_tok_s"),
    "W3": ("output_tok_s", "total_tok_s"),
    "W4": ("ttft_ms",),
    "W5": ("itl_p99_ms", "itl_p50_ms", "ttft_p50_ms", "ttft_p99_ms"),
    "W6": ("itl_p99_ms", "itl_p50_ms", "ttft_p50_ms", "ttft_p99_ms"),
}
HIGHER_IS_BETTER = {"output_tok_s", "total_tok_s"}
# Of the first tokens of a workload's requests, by which a peer of the same precision computes the same model.
LEAST_AGREEMENT = 0.5
MOST_OTHERS_CORES = 0.25


@dataclass(frozen=True, slots=True)
class Run:
    """One contestant on one workload in one round."""

    contestant: str
    workload: str
    round: int
    figures: Mapping[str, float]
    others_cores: float = 0.0


@dataclass(frozen=True, slots=True)
class Target:
    """A limit of our figure by the best of `rivals` (empty: of all peers), or of the figure itself."""

    workload: str
    metric: str
    precisions: tuple[str, ...]
    limit: float
    rivals: tuple[str, ...] = ()
    is_absolute: bool = False

    def __str__(self) -> str:
        sign = ">=" if self.metric in HIGHER_IS_BETTER else "<="
        return f"{sign} {self.limit:g}{' s' if self.is_absolute else ''}"

    def is_met(self, value: float) -> bool:
        return value >= self.limit if self.metric in HIGHER_IS_BETTER else value <= self.limit


TARGETS = (
    Target("W1", "itl_ms", ("bf16", "int8"), 1.0),
    Target("W1", "itl_ms", ("4-bit",), 1.0, rivals=("llama-4bit",)),
    Target("W2", "output_tok_s", ("bf16",), 1.2),
    Target("W3", "output_tok_s", ("bf16",), 1.2),
    Target("W4", "ttft_ms", ("bf16",), 1.0),
    Target("W5", "itl_p99_ms", ("bf16",), 1.0, rivals=("vllm-server",)),
    Target("W6", "itl_p99_ms", ("bf16",), 1.0, rivals=("vllm-server",)),
    Target(START, "first_token_s", ("bf16", "int8", "4-bit"), 5.0, is_absolute=True),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """One of ours against the best peer; without a peer only where there is a target. `verdict` is "met", "missed",
    "not judged" (nobody to compare with), or "" where there is no target.
    """

    ours: str
    workload: str
    metric: str
    peer: str | None
    ratio: Spread | None
    target: Target | None
    verdict: str


@dataclass(slots=True)
class Results:
    """All that was seen. `token_ids` are those of the first round: of a contestant, by workload."""

    runs: list[Run] = field(default_factory=list)
    token_ids: dict[str, dict[str, list[list[int]]]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def by_round(self, contestant: str, workload: str, metric: str) -> dict[int, float]:
        """The figure in each round in which it was measured."""
        return {
            run.round: run.figures[metric]
            for run in self.runs
            if (run.contestant, run.workload) == (contestant, workload) and metric in run.figures
        }

    def spread(self, contestant: str, workload: str, metric: str) -> Spread | None:
        """Over the rounds; None where nothing was measured."""
        return Spread.of(list(self.by_round(contestant, workload, metric).values()))

    def measured(self, workload: str) -> list[Contestant]:
        """Who has figures for it, in the order of the table of contestants."""
        names = {run.contestant for run in self.runs if run.workload == workload}
        return [contestant for contestant in CONTESTANTS if contestant.name in names]


def figures_of(workload: str, answer: Mapping[str, Any], num_prompt_tokens: int) -> dict[str, float]:
    """The workload's figures out of what an adapter has answered. Raises ValueError for an answer without tokens."""
    num_output_tokens = sum(map(len, answer["token_ids"]))
    if not num_output_tokens:
        raise ValueError("no token came")
    wall_s, found = answer["wall_s"], {"wall_s": answer["wall_s"]}
    if workload in ("W1", "W4"):
        found["ttft_ms"] = 1e3 * answer["ttft_s"][0]
        if answer["itl_s"]:
            found["itl_ms"] = 1e3 * sum(answer["itl_s"]) / len(answer["itl_s"])
    rates = {"output_tok_s": num_output_tokens, "total_tok_s": num_output_tokens + num_prompt_tokens}
    return found | {name: count / wall_s for name, count in rates.items()}


def ratios(results: Results) -> list[Ratio]:
    """Every one of ours against the best peer of its precision, for each workload and metric."""
    return list(_ratios(results))


def _ratios(results: Results) -> Iterator[Ratio]:
    others = set(differing(results))
    for workload, metrics in METRICS.items():
        measured = results.measured(workload)
        for ours in (contestant for contestant in measured if contestant.is_ours):
            peers = [c.name for c in measured if not c.is_ours and c.precision == ours.precision]
            for metric in metrics:
                found = _against(results, ours, [name for name in peers if name not in others], (workload, metric))
                if found is not None:
                    yield found


def _target(ours: Contestant, workload: str, metric: str) -> Target | None:
    for target in TARGETS:
        if (target.workload, target.metric) == (workload, metric) and ours.precision in target.precisions:
            return target
    return None


def _against(results: Results, ours: Contestant, peers: Sequence[str], what: tuple[str, str]) -> Ratio | None:
    workload, metric = what
    mine = results.by_round(ours.name, workload, metric)
    theirs = {name: results.by_round(name, workload, metric) for name in peers}
    theirs = {name: by_round for name, by_round in theirs.items() if by_round.keys() & mine.keys()}
    target = _target(ours, workload, metric)
    # Who the target is about, where they are there; else the ratio is shown and not judged.
    rivals = theirs.keys() & target.rivals if target and target.rivals else theirs.keys()
    ratio, best = None, _best({name: theirs[name] for name in rivals or theirs}, metric)
    if best is not None:
        ratio = Spread.of([mine[i] / theirs[best][i] for i in sorted(mine.keys() & theirs[best].keys())])
    if target is None:
        return Ratio(ours.name, workload, metric, best, ratio, None, "") if ratio else None
    judged = ratio.median if ratio and rivals else None
    if target.is_absolute:
        judged = median(mine.values()) if mine else None
    verdict = "not judged" if judged is None else "met" if target.is_met(judged) else "missed"
    return Ratio(ours.name, workload, metric, best, ratio, target, verdict)


def _best(by_name: Mapping[str, Mapping[int, float]], metric: str) -> str | None:
    choose = max if metric in HIGHER_IS_BETTER else min
    return choose(by_name, key=lambda name: median(by_name[name].values()), default=None)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Tokens of W1 up to the first that differs from ours in bf16, and the share of W2's first tokens that are ours."""

    common_prefix: int | None
    num_tokens: int | None
    first_tokens: float | None

    @property
    def is_same_model(self) -> bool:
        """Rounding alone makes few first tokens other ones. What is not known speaks against nobody."""
        return self.common_prefix != 0 and (self.first_tokens is None or self.first_tokens >= LEAST_AGREEMENT)


def agreements(results: Results) -> dict[str, Agreement]:
    """Of every other contestant with Octavo in bf16."""
    ours = results.token_ids.get(OURS, {})
    return {name: _agreement(ours, theirs) for name, theirs in results.token_ids.items() if name != OURS}


def _agreement(ours: Mapping[str, list[list[int]]], theirs: Mapping[str, list[list[int]]]) -> Agreement:
    prefix = num_tokens = share = None
    if "W1" in ours and "W1" in theirs:
        pairs = list(zip(ours["W1"][0], theirs["W1"][0], strict=True))
        prefix, num_tokens = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs))), len(pairs)
    if "W2" in ours and "W2" in theirs:
        # An empty list is a request that was not run, a negative id one that the engine does not tell.
        both = [(a[0], b[0]) for a, b in zip(ours["W2"], theirs["W2"], strict=True) if a and b and b[0] >= 0]
        share = sum(a == b for a, b in both) / len(both) if both else None
    return Agreement(prefix, num_tokens, share)


def differing(results: Results) -> list[str]:
    """Contestants in bf16 that compute something else than we do: no peers."""
    found = agreements(results)
    return [name for name in found if BY_NAME[name].precision == "bf16" and not found[name].is_same_model]


def disturbed(results: Results) -> list[str]:
    """Runs that other processes slowed down: ratios with them are not to be quoted."""
    return [
        f"{run.workload} {run.contestant}, round {run.round + 1}: others used {run.others_cores:.2f} cores"
        for run in results.runs
        if run.others_cores > MOST_OTHERS_CORES
    ]
