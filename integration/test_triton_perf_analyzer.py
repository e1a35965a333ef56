"""Triton's own load generator over gRPC streams: every request ends well, and a bad one is noticed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import triton_clients as clients
from model_repositories import FAST, REPORTING, add_fake_model, killed_afterwards, options_for

from octavo_triton.launch import TritonServer

PROMPTS = ["Once upon a time", "The sea", "The capital of France is"]
NUM_REQUESTS = 40
CONCURRENCY = 8
# One window of NUM_REQUESTS requests is one trial; what it measures need not be stable.
MEASUREMENT = ["--measurement-mode=count_windows", f"--measurement-request-count={NUM_REQUESTS}"]
MEASUREMENT += ["--stability-percentage=999", "--max-trials=3", f"--concurrency-range={CONCURRENCY}"]


@pytest.fixture(scope="module")
def perf_analyzer(server_dir: Path) -> Path:
    """The folder with the program; installs it the first time."""
    script = Path(__file__).with_name("install_perf_analyzer.sh")
    subprocess.run([script, server_dir, sys.executable], check=True)
    return server_dir.resolve() / "perf_analyzer"


@pytest.fixture(scope="module")
def fake_server(server_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("perf")
    add_fake_model(repository, "fake", 'backend: "octavo"\n' + REPORTING, executor=FAST)
    with killed_afterwards(options_for(repository, server_dir, load_models=None)) as server:
        yield server


def load(perf_analyzer: Path, server: TritonServer, folder: Path, **sampling: Any) -> subprocess.CompletedProcess[str]:
    """Streams over gRPC with our inputs, which are written to `folder`.

    Without its profile of the responses, which holds stray memory for every optional output that was not sent.
    """
    parameters = json.dumps({"max_tokens": 16, "ignore_eos": True} | sampling)
    step = {"stream": [True], "sampling_parameters": [parameters]}
    data = {"data": [{"text_input": [prompt]} | step for prompt in PROMPTS]}
    (folder / "input.json").write_text(json.dumps(data), encoding="utf-8")
    command = [str(perf_analyzer / "perf_analyzer"), "-m", "fake", "-u", server.grpc_address, "-i", "grpc"]
    command += ["--async", "--streaming", "--input-data", str(folder / "input.json"), *MEASUREMENT]
    environment = os.environ | {"LD_LIBRARY_PATH": str(perf_analyzer / "lib")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_it_completes_with_every_request_answered(
    perf_analyzer: Path, fake_server: TritonServer, tmp_path: Path
) -> None:
    done = load(perf_analyzer, fake_server, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = re.findall(rf"^Concurrency: {CONCURRENCY}, throughput: .*$", done.stdout, re.MULTILINE)
    print(f"perf_analyzer, fake model: {line}")
    counts = [int(count) for count in re.findall(r"equest count: (\d+)", done.stdout)]
    assert len(counts) == 2, done.stdout
    assert min(counts) >= NUM_REQUESTS
    clients.wait_until(lambda: clients.is_idle(fake_server))


@pytest.mark.slow
def test_it_reports_requests_that_fail(perf_analyzer: Path, fake_server: TritonServer, tmp_path: Path) -> None:
    done = load(perf_analyzer, fake_server, tmp_path, temperature=-1)
    assert done.returncode != 0
    assert "Error generating stream: temperature: -1 is not allowed" in done.stdout + done.stderr
