"""The measurements of integration/bench/gpu.py on a machine without a GPU: their code runs, nothing is timed."""

import json
import subprocess
import sys
from argparse import ArgumentTypeError
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("triton")

BENCH = Path(__file__).resolve().parents[2] / "integration/bench"
# All but the peers'.
OWN = ["0", "1a", "1b", "1c", "1d", "2", "3a", "3b", "3c", "4", "5", "6", "8", "9", "10"]
# What need not be installed where a GPU is.
ABSENT = ["msgspec", "gguf", "tokenizers", "safetensors", "typer", "octavo_triton"]
WITHOUT = "import runpy, sys; sys.modules.update(dict.fromkeys({absent})); sys.argv = sys.argv[1:]; "
WITHOUT += "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], run_name='__main__')"
# Figures that are no times, nor made of any.
UNTIMED = {"largest_error", "atol", "rtol", "GB", "tokens_a_step"}


def run_bench(*arguments, absent):
    command = [sys.executable, "-c", WITHOUT.format(absent=absent), BENCH / "gpu.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


def found_by(done, folder):
    """The stages of the only file there."""
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = folder.iterdir()
    found = json.loads(file.read_text())
    assert (found["commit"], found["mode"], found["hardware"]["gpu"]) == ("abc", "dry", None)
    for stage in found["stages"].values():
        assert stage["rows"] and stage["error"] is None
        for row in stage["rows"]:
            assert not any(key.endswith("_refused") or key in ("error", "skipped") for key in row), row
            assert row.get("passed", True) and row.get("met") is None, row
            assert not {key for key, value in row.items() if isinstance(value, float)} - UNTIMED, row
    return found["stages"]


@pytest.fixture(scope="module")
def dry_runs(tmp_path_factory):
    """Both processes beside each other, and the folder of each one's results: all stages but one, and that one."""
    pytest.importorskip("transformers")
    # transformers itself needs two of them.
    absent = [name for name in ABSENT if name not in ("tokenizers", "safetensors")]
    wanted = {"octavo": (OWN, ABSENT), "peers": (["7"], absent)}
    with ThreadPoolExecutor() as pool:
        runs = {}
        for name, (stages, missing) in wanted.items():
            folder = tmp_path_factory.mktemp(name)
            arguments = ["--dry-run", "--stages", ",".join(stages), "--commit", "abc", "--out", folder]
            runs[name] = pool.submit(run_bench, *arguments, absent=missing), folder
        return {name: (run.result(), folder) for name, (run, folder) in runs.items()}


@pytest.mark.slow
def test_every_stage_runs_without_a_gpu_and_without_octavos_dependencies(dry_runs):
    stages = found_by(*dry_runs["octavo"])
    assert list(stages) == OWN
    for name in ("1a", "1b", "1c", "1d"):
        assert all(row["passed"] is True for row in stages[name]["rows"])
    assert [row["window"] for row in stages["8"]["rows"][1:3]] == ["without a long prompt", "with a 32k prompt"]
    assert sum(row.get("cancelled", 0) for row in stages["9"]["rows"]) > 0
    assert {"loading_weights_s", "first_token_s"} <= stages["10"]["rows"][-1].keys()


@pytest.mark.slow
def test_transformers_runs_the_same_requests(dry_runs):
    rows = found_by(*dry_runs["peers"])["7"]["rows"]
    ways = ["one at a time", "continuous batching", "static batches of 16"]
    assert [row["peer"] for row in rows] == [way for way in ways for _ in range(2)]
    assert [row["sample"] for row in rows] == ["1 of 6", "2 of 6", "all", "all", "6 of 6", "6 of 6"]


@pytest.fixture
def bench_modules(monkeypatch):
    monkeypatch.syspath_prepend(BENCH)


@pytest.mark.usefixtures("bench_modules")
def test_a_case_that_fails_is_a_failure_and_ends_nothing():
    import torch
    from gpu_timing import Bench

    def fail():
        raise ValueError("broken")

    row = Bench(torch.device("cpu"), "dry").guarded({"case": "a"}, fail)
    assert row == {"case": "a", "error": "ValueError: broken"}


@pytest.mark.usefixtures("bench_modules")
def test_what_one_command_found_stays_when_another_measures_the_rest(tmp_path):
    from gpu_results import Results

    head = {"commit": "abc", "mode": "full", "hardware": {"gpu": "A GPU"}}
    first = Results.at(tmp_path, head)
    first.begin("0", "the machine")
    first.add("0", {"us": float("nan")})
    assert first.failures == ["stage 0: was cut off"]
    first.end("0", 1.0, None)
    second = Results.at(tmp_path, head)
    second.begin("1a", "checks")
    second.add("1a", {"passed": False})
    second.end("1a", 1.0, None)
    third = Results.at(tmp_path, head)
    assert third.stages["0"]["rows"] == [{"us": None}]
    assert third.failures == ["stage 1a: {'passed': False}"]
    assert not Results.at(tmp_path, head | {"commit": "other"}).stages


@pytest.mark.slow
@pytest.mark.usefixtures("bench_modules")
def test_the_roofline_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from gpu_roofline import draw

    rows = [{"us": 10.0, "bytes": 1e6, "flops": 4e6}, {"us": 1.0, "bytes": 100, "flops": 0}]
    draw({"decode": rows}, (4e12, 8e14), "a GPU", tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 1000


@pytest.mark.usefixtures("bench_modules")
def test_a_quick_run_does_not_replace_a_full_one(tmp_path):
    from gpu_results import Results

    head = {"commit": "abc", "hardware": {"gpu": "A GPU"}}
    files = [Results.at(tmp_path, head | {"mode": mode}).file for mode in ("full", "quick")]
    assert files[0] != files[1]


@pytest.mark.usefixtures("bench_modules")
def test_stages_are_chosen_by_number_and_unknown_ones_refused():
    from gpu_stages import GROUPS, MOST_SECONDS, STAGES, estimate_s, selected

    assert selected("10, 1,2") == ["1a", "1b", "1c", "1d", "2", "10"]
    assert selected("3b") == ["3b"]
    assert estimate_s(["4", "5"], is_quick=True) == estimate_s(["4", "5"], is_quick=False) / 2
    groups = [selected(group) for group in GROUPS]
    assert {stage for group in groups for stage in group} == set(STAGES)
    assert all(estimate_s(group, is_quick=False) <= MOST_SECONDS for group in groups)
    for text in ("12", "1e", "", "1,,2", "."):
        with pytest.raises(ArgumentTypeError, match="stages are 0, 1a"):
            selected(text)


@pytest.fixture
def llama_roof(bench_modules):
    from gpu_roof import Roof
    from gpu_shapes import LLAMA_8B

    from octavo.models.config import read_spec

    return Roof(read_spec(LLAMA_8B), copy_bytes_per_s=4.3e12, flops_per_s=790e12)


def test_a_steps_roofline_is_weights_or_matmul_and_then_the_kv(llama_roof):
    """The published table of this shape on an H200, in milliseconds, at these two rates."""
    table = {1: 3.52, 8: 3.74, 32: 4.49, 64: 5.49, 128: 7.49, 256: 12.85}
    found = {batch: llama_roof.decode_s(batch, batch * 1024) * 1e3 for batch in table}
    assert found == pytest.approx(table, rel=5e-3)
    assert 1024 / llama_roof.prefill_s(1024) == pytest.approx(55500, rel=5e-3)
    assert 8192 / llama_roof.prefill_s(8192) == pytest.approx(49000, rel=5e-3)
    assert 256 * 1024 / llama_roof.offline_s([(1024, 1024)] * 256) == pytest.approx(11900, rel=5e-3)


def test_offline_every_request_counts_until_its_own_last_step(llama_roof):
    steps = [(2, 10 + 1 + 20 + 1), (1, 20 + 2)]
    expected = llama_roof.prefill_s(10) + llama_roof.prefill_s(20) + sum(llama_roof.decode_s(*step) for step in steps)
    assert llama_roof.offline_s([(10, 2), (20, 3)]) == pytest.approx(expected)


@pytest.mark.usefixtures("bench_modules")
def test_targets_say_met_missed_or_nothing():
    from gpu_targets import at_least, at_most

    nan = float("nan")
    judged = [at_least(figure, 0.75, first=0.6)["met"] for figure in (0.75, 0.7, 0.5, nan)]
    assert judged == ["met", "first met", "missed", None]
    assert [at_most(figure, 2)["met"] for figure in (2, 2.1, nan)] == ["met", "missed", None]


@pytest.mark.slow
@pytest.mark.usefixtures("bench_modules")
def test_idle_is_what_lies_between_pieces_of_work_on_the_devices_own_clock():
    import gpu_idle

    clock = [0.0]

    class Event:
        def record(self):
            self.at = clock[0]

        def elapsed_time(self, end_event):
            return end_event.at - self.at

    class Device:
        def launch(self, work):
            work()

    def work():
        clock[0] += 9.0

    steps = gpu_idle.StepClock(Event)
    with steps.watching(Device):
        for pause in (0.0, 1.0, 2.0):
            clock[0] += pause
            Device().launch(work)
    Device().launch(work)
    found = gpu_idle.idle_between(steps.marks)
    assert found == {"idle": pytest.approx(3 / 30), "longest_gap_us": 2000.0, "work_ms": 9.0}
    assert gpu_idle.covered([(5, 6), (0, 2), (1, 3)]) == (4, 6)
    assert gpu_idle.covered([]) == (0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("bench_modules")
def test_latencies_are_those_of_a_window_and_of_short_requests():
    from gpu_online import Served
    from gpu_requests import Run

    run = Run(engine=None, times={"a": [1.0, 1.1, 5.0], "long": [4.0, 4.5], "b": [4.25]})
    served = Served(run, {"a": 0.5, "long": 2.0, "b": 3.0}, "long")
    assert served.long_window == (2.0, 4.0)
    before, during, after = (served.latencies(*window) for window in ((0, 2), (2, 4), (4, 9)))
    assert (before["requests"], before["gaps"], before["ttft_p50_ms"]) == (1, 1, 500)
    assert (during["requests"], during["gaps"], during["ttft_p99_ms"]) == (1, 0, 1250)
    assert after["gaps"] == 2 and after["itl_max_ms"] == pytest.approx(3900)


@pytest.mark.slow
@pytest.mark.usefixtures("bench_modules")
def test_a_peer_that_takes_too_long_is_measured_at_the_beginning_of_every_request(monkeypatch):
    import gpu_peers
    import torch
    from gpu_timing import Bench

    class Slow:
        attention = "slow"

        def __init__(self, model, requests, **sizes):
            self.seen = []

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def run(self, requests, most):
            assert most is not None, "the whole is not run"
            assert requests[0].prompt_token_ids not in self.seen, "its cache knows this prompt"
            self.seen.append(requests[0].prompt_token_ids)
            return 5 + 0.1 * most

    monkeypatch.setattr(gpu_peers, "ContinuousBatching", Slow)
    rows = [{"workload": gpu_peers.EVEN, "median_output_tokens_per_s": 7000.0}]
    bench = Bench(torch.device("cpu"), "full", rows_of=lambda stage: rows if stage == "6" else [])
    row = gpu_peers.continuous(bench, None, gpu_peers.EVEN)
    assert row["sample"] == "the first 20 tokens of each"
    assert row["s"] == pytest.approx(5 + 0.1 * 1024)
    assert row["octavo_is"] == pytest.approx(7000 / (256 * 1024 / row["s"])) and row["met"] == "met"


@pytest.mark.slow
@pytest.mark.usefixtures("bench_modules")
def test_the_checkpoint_is_one_that_safetensors_reads(tmp_path, monkeypatch):
    import gpu_checkpoint
    import torch
    from gpu_timing import Bench
    from safetensors.torch import load_file

    monkeypatch.setattr(gpu_checkpoint, "_SHARD_BYTES", 20_000)
    gpu_checkpoint.write(tmp_path, Bench(torch.device("cpu"), "dry"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 1 and gpu_checkpoint.is_whole(tmp_path, is_dry=True)
    found = {name: (file.name, tensor) for file in files for name, tensor in load_file(file).items()}
    assert {name: file for name, (file, _) in found.items()} == index["weight_map"]
    assert not gpu_checkpoint.is_whole(tmp_path, is_dry=False), "another shape"
    assert sum(tensor.nbytes for _, tensor in found.values()) == gpu_checkpoint.size_bytes(is_dry=True)
    assert found["model.embed_tokens.weight"][1].float().std() == pytest.approx(32**-0.5, rel=0.1)
    assert found["model.norm.weight"][1].tolist() == [1.0] * 32
