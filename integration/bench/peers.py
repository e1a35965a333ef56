"""Octavo against the engines that a user would pick on a CPU: installs them, runs W1-W6 in turns, prints ratios.

Every contestant has a fresh process a round, and is alone on the machine while it runs. Peers that cannot be installed
or fail are named and left out. Writes JSON and a picture; exit 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import peer_contestants
import peer_online
import peer_report
import peer_tables
from peer_contestants import CONTESTANTS, OFFLINE, ONLINE, OURS, START, Contestant
from peer_install import Peers, install
from peer_process import AdapterProcess, PeerFailed, Setting
from peer_report import METRICS, Results, Run
from rich.console import Console
from stage import write_results

from octavo import bench, workloads
from octavo.progress import count_bar

# What --quick makes of every offline workload: requests, prompt tokens, output tokens.
QUICK = (4, 64, 8)


def turn(contestant: Contestant, number: int, args: argparse.Namespace, results: Results) -> None:
    """One contestant in one round; what it had done before it failed stays."""
    setting = Setting(Peers(args.folder), args.threads)
    chosen = [name for name in contestant.workloads if name in args.workloads]
    try:
        if contestant.is_online:
            for name, figures, others in peer_online.measure(contestant, setting, chosen, args.quick):
                results.runs.append(Run(contestant.name, name, number, figures, others))
        else:
            offline_turn(contestant, number, setting, args, results)
    except (PeerFailed, ValueError) as error:
        # ValueError: what came makes no sense.
        results.missing[contestant.name] = str(error)


def offline_turn(
    contestant: Contestant, number: int, setting: Setting, args: argparse.Namespace, results: Results
) -> None:
    with AdapterProcess(contestant, setting) as process:
        results.versions[contestant.name] = process.version
        if START in args.workloads:
            results.runs.append(Run(contestant.name, START, number, {"first_token_s": process.first_token_s}))
        for name in [name for name in contestant.workloads if name in args.workloads]:
            workload = workloads.make(name)
            workload = workload.clipped(*QUICK) if args.quick else workload
            indices = range(0, len(workload.items), contestant.every_nth.get(name, 1))
            part = workload.part(indices)
            answer, others = process.run(part.items)
            figures = peer_report.figures_of(name, answer, part.num_prompt_tokens)
            results.runs.append(Run(contestant.name, name, number, figures, others))
            if number == 0:
                placed: list[list[int]] = [[] for _ in workload.items]
                for i, token_ids in zip(indices, answer["token_ids"], strict=True):
                    placed[i] = token_ids
                results.token_ids.setdefault(contestant.name, {})[name] = placed


def absent(contestants: Sequence[Contestant], folder: Path, told: Callable[[str], None]) -> dict[str, str]:
    """Installs what they need; who cannot take part, and why."""
    environments = dict.fromkeys(c.environment for c in contestants if c.environment != OURS)
    reasons = install(Peers(folder), list(environments), told)
    return {c.name: reasons[c.environment] for c in contestants if c.environment in reasons}


def report(results: Results, args: argparse.Namespace, environment: dict[str, object]) -> dict[str, object]:
    found = peer_report.ratios(results)
    return environment | {
        "threads": args.threads,
        "rounds": args.rounds,
        "peer_versions": results.versions,
        "vllm_preloads": [Path(path).name for path in peer_contestants.preloaded(Peers(args.folder))],
        "contestants": {
            c.name: {"title": c.title, "precision": c.precision, "weights": c.weights, "every_nth": dict(c.every_nth)}
            for c in CONTESTANTS
        },
        "missing": results.missing,
        "disturbed": peer_report.disturbed(results),
        "missed": [f"{r.workload} {r.metric} {r.ours}" for r in found if r.verdict == "missed"],
        "agreement_with_octavo_bf16": {name: asdict(a) for name, a in peer_report.agreements(results).items()},
        "computes_something_else": peer_report.differing(results),
        "ratios": [asdict(ratio) for ratio in found],
        "runs": [asdict(run) for run in results.runs],
    }


def show(results: Results, console: Console) -> None:
    for workload in METRICS:
        if results.measured(workload):
            console.print(peer_tables.figures_table(results, workload))
    console.print(peer_tables.agreement_table(results))
    console.print(peer_tables.ratios_table(peer_report.ratios(results)))
    for name in peer_report.differing(results):
        console.print(f"[bold red]computes something else, not compared[/] {name}")
    for name, reason in results.missing.items():
        console.print(f"[bold yellow]missing[/] {name}: {reason}", soft_wrap=True)
    for line in peer_report.disturbed(results):
        console.print(f"[bold yellow]disturbed, do not quote[/] {line}")


def takes_part(contestant: Contestant, chosen: Sequence[str]) -> bool:
    return bool(set(contestant.workloads) & set(chosen)) or (START in chosen and not contestant.is_online)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [contestant.name for contestant in CONTESTANTS]
    everything = (START, *OFFLINE, *ONLINE)
    parser.add_argument("--folder", type=Path, default=Path(".peers"), help="where the peers are installed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--workloads", nargs="+", choices=everything, default=everything, metavar="NAME")
    parser.add_argument("--install-only", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one round, clipped workloads, no files")
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    args.rounds = 1 if args.quick else args.rounds
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads are at least 1")
    return args


def write(results: Results, args: argparse.Namespace, environment: dict[str, object]) -> Path:
    everything = set(args.workloads) == {START, *OFFLINE, *ONLINE}
    # A part of the run does not take the place of the whole one.
    name = "peers" if everything else "-".join(("peers", *args.workloads))
    file = write_results(name, report(results, args, environment))
    title = f"{bench.cpu_name()}, {args.threads} threads, {file.stem[-10:]}"
    peer_tables.draw(results, title, file.with_suffix(".png"))
    return file


def main() -> int:
    args = parse()
    # Now, while the load average does not count this run itself.
    environment = bench.environment()
    contestants = [c for c in CONTESTANTS if c.name in args.only and takes_part(c, args.workloads)]
    counts = not (args.quick or args.install_only)
    console = Console(width=None if sys.stdout.isatty() else 180)
    results, file = Results(missing=absent(contestants, args.folder, console.log)), None
    with count_bar("peers", len(contestants) * args.rounds) as told:
        for number in range(0 if args.install_only else args.rounds):
            for contestant in contestants:
                told(f"round {number + 1}: {contestant.name}")
                if contestant.name not in results.missing:
                    turn(contestant, number, args, results)
            # After every round: the next ones take long.
            file = write(results, args, environment) if counts else None
    show(results, console)
    console.print(f"written: {file} and .png" if file else "nothing was measured that counts, nothing is written")
    missed = any(ratio.verdict == "missed" for ratio in peer_report.ratios(results))
    return int(counts and missed)


if __name__ == "__main__":
    sys.exit(main())
