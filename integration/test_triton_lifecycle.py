"""Loading, failing to load, losing the engine, and leaving nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import triton_clients as clients
import tritonclient.grpc as grpcclient
from model_repositories import (
    KIND_MODEL,
    UNARY,
    add_fake_model,
    add_model,
    killed_afterwards,
    load,
    num_processes,
    options_for,
    unload,
)
from tritonclient.utils import InferenceServerException

from octavo.testing import make_fake_model
from octavo_triton.launch import LaunchError, TritonServer, find_default_model, free_port


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def broken_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with good models and, beside them, models that cannot be loaded."""
    repository = tmp_path_factory.mktemp("models")
    add_fake_model(repository, "smollm2")
    add_fake_model(repository, "unary", KIND_MODEL + UNARY)
    (add_model(repository, "bad_json") / "1/model.json").write_text('{"model": ', encoding="utf-8")
    add_model(repository, "bad_key", no_such_argument=1)
    folder = add_model(repository, "missing_shard", model="../weights") / "weights"
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 8, "max_position_embeddings": 64}
    write_json(folder / "config.json", config)
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    make_fake_model(add_model(repository, "unknown_architecture", model="../weights") / "weights")
    folder = add_model(repository, "truncated", model="../weights.gguf")
    (default_model,) = find_default_model(sys.executable).values()
    with open(default_model, "rb") as whole:
        (folder / "weights.gguf").write_bytes(whole.read(5_000_000))
    return repository


@pytest.fixture(scope="module")
def explicit_server(server_dir: Path, broken_models: Path) -> Iterator[TritonServer]:
    """A server under explicit model control that has loaded one good model."""
    with killed_afterwards(options_for(broken_models, server_dir, load_models=("smollm2",))) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bad_json", "model.json' is not a JSON file"),
        ("bad_key", "unknown engine argument 'no_such_argument'"),
        ("missing_shard", "names model-00001-of-00002.safetensors, which is missing"),
        ("unknown_architecture", "FakeForCausalLM"),
        ("truncated", "it may be truncated: fetch it again"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why_and_others_are_served(
    explicit_server: TritonServer, name: str, said: str
) -> None:
    status, error = load(explicit_server, name)
    assert status == 400
    assert said in error
    assert clients.text_of(explicit_server, "The capital of France is", max_tokens=2)
    clients.wait_until(lambda: num_processes(explicit_server) == (1, 1))


@pytest.mark.slow
def test_the_launcher_tells_a_failed_load_in_one_line(server_dir: Path, tmp_path: Path) -> None:
    add_model(tmp_path / "models", "bad_key", no_such_argument=1)
    options = options_for(tmp_path / "models", server_dir, load_models=None)
    with pytest.raises(LaunchError) as caught, TritonServer(options):
        pass
    assert str(caught.value).startswith(
        "failed to load 'bad_key' version 1: unknown engine argument 'no_such_argument'"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_unloading_ends_the_engine_process_and_loading_again_serves(explicit_server: TritonServer) -> None:
    before = clients.text_of(explicit_server, "The capital of France is", max_tokens=4, seed=1)
    (engine,) = clients.processes(explicit_server)["engine"]
    unload(explicit_server, "smollm2")
    clients.wait_until(lambda: not engine.is_running())
    assert load(explicit_server, "smollm2") == (200, "")
    assert clients.text_of(explicit_server, "The capital of France is", max_tokens=4, seed=1) == before


@pytest.mark.slow
def test_a_model_that_is_not_decoupled_answers_unary_calls_and_errors_carry_codes(
    explicit_server: TritonServer,
) -> None:
    assert load(explicit_server, "unary") == (200, "")
    with grpcclient.InferenceServerClient(explicit_server.grpc_address) as client:
        tensors = clients.request_tensors("The capital of France is", {"max_tokens": 2, "temperature": 0})
        (text,) = client.infer("unary", tensors).as_numpy("text_output")
        assert text.decode().startswith("The capital of France is")
        for parameters, inputs in (({"temperature": -1}, {}), ({}, {"stream": True})):
            with pytest.raises(InferenceServerException, match="Error generating stream: ") as caught:
                client.infer("unary", clients.request_tensors("x", parameters, **inputs))
            assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    unload(explicit_server, "unary")
    clients.wait_until(lambda: num_processes(explicit_server) == (1, 1))


@pytest.mark.slow
def test_streams_survive_the_death_of_the_engine_process(triton_server: TritonServer) -> None:
    prompts = ["Once upon a time", "Tell me about the sea.", "The capital of France is"]
    expected = [clients.text_of(triton_server, prompt, max_tokens=80, ignore_eos=True) for prompt in prompts]
    (engine,) = clients.processes(triton_server)["engine"]
    texts = [""] * len(prompts)
    begun = threading.Barrier(len(prompts) + 1, timeout=60)

    def read(number: int) -> None:
        parameters = {"temperature": 0, "max_tokens": 80, "ignore_eos": True}
        client = clients.GrpcStream(triton_server, prompts[number], parameters, stream=True)
        for deltas in client:
            if not texts[number]:
                begun.wait()
            texts[number] += deltas[0]
        client.close()

    readers = [threading.Thread(target=read, args=[number]) for number in range(len(prompts))]
    for reader in readers:
        reader.start()
    begun.wait()
    os.kill(engine.pid, signal.SIGKILL)
    for reader in readers:
        reader.join()
    assert texts == expected
    clients.wait_until(lambda: clients.is_idle(triton_server), 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "add"), [(signal.SIGINT, add_fake_model), (signal.SIGTERM, add_model)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_ends_the_launcher_and_everything_it_started(
    server_dir: Path, tmp_path: Path, number: signal.Signals, add: Callable[[Path, str], Path]
) -> None:
    """The embedded model's engine ends as a fake one does."""
    add(tmp_path / "models", "smollm2")
    ports = [free_port(), free_port(), free_port()]
    command = [sys.executable, "-m", "octavo_triton.server", "--model-repository", str(tmp_path / "models")]
    command += ["--server-dir", str(server_dir), "--http-port", str(ports[0]), "--grpc-port", str(ports[1])]
    command += ["--metrics-port", str(ports[2])]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert launcher.stdout is not None
        said = []
        for line in launcher.stdout:
            said.append(line)
            if line.startswith("Ctrl-C"):
                break
        assert any("ready" in line for line in said), said
        family = psutil.Process(launcher.pid).children(recursive=True)
        assert len(family) >= 3
        urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v2/health/ready", timeout=10).close()
        launcher.send_signal(number)
        rest = launcher.stdout.read()
        assert launcher.wait(60) == 0
    finally:
        launcher.kill()
        launcher.wait()
        launcher.stdout.close()
    assert "the server has stopped" in rest
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
    assert list(Path("/dev/shm").glob(f"octavo_{launcher.pid}_*")) == []
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
