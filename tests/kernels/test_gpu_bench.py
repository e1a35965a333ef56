"""The measurements of integration/bench/gpu.py on a machine without a GPU: their code runs, nothing is timed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

BENCH = Path(__file__).resolve().parents[2] / "integration/bench"
STAGES = ["0", "1a", "1b", "1c", "2", "3a", "3b", "3c"]
# What need not be installed where a GPU is.
ABSENT = ["msgspec", "gguf", "tokenizers", "safetensors", "typer", "octavo_triton"]
WITHOUT = f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT})); sys.argv = sys.argv[1:]; "
WITHOUT += "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0], run_name='__main__')"


def run_bench(*arguments):
    command = [sys.executable, "-c", WITHOUT, BENCH / "gpu.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_every_stage_runs_without_a_gpu_and_without_octavos_dependencies(tmp_path):
    done = run_bench("--dry-run", "--stages", "0,1,2,3,engine", "--commit", "abc", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "engine: not there yet" in done.stdout
    [file] = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert (found["commit"], found["mode"], found["hardware"]["gpu"]) == ("abc", "dry", None)
    assert list(found["stages"]) == STAGES
    for name, stage in found["stages"].items():
        assert stage["rows"] and stage["error"] is None
        for row in stage["rows"]:
            assert not any(key.endswith("_refused") for key in row), row
            assert row["passed"] is True if name.startswith("1") else row["us"] is None


@pytest.mark.slow
def test_a_stage_that_nobody_knows_is_refused():
    done = run_bench("--dry-run", "--stages", "7")
    assert done.returncode == 2
    assert "got '7'" in done.stderr


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
