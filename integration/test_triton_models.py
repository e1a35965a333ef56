"""How models are configured, loaded and unloaded: versions, instances, completed configs, and all of it under load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import triton_clients as clients
import tritonclient.grpc as grpcclient
from model_repositories import (
    KIND_MODEL,
    UNARY,
    add_fake_model,
    generate,
    killed_afterwards,
    load,
    num_processes,
    options_for,
    unload,
)

from octavo_triton.launch import TritonServer

LISTED = """
max_batch_size: 0
input [
  { name: "text_input" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }
]
output [ { name: "text_output" data_type: TYPE_STRING dims: [ -1 ] } ]
model_transaction_policy { decoupled: true }
"""
WARM_UP = """
model_warmup [
  { name: "empty" batch_size: 0 inputs { key: "text_input" value { data_type: TYPE_STRING dims: 1 zero_data: true } } }
]
"""
NUM_TOKENS = 150


@pytest.fixture(scope="module")
def server(server_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server under explicit control whose models are small, fast and odd."""
    repository = tmp_path_factory.mktemp("models")
    add_fake_model(repository, "busy")
    add_fake_model(repository, "bare", 'backend: "octavo"\n')
    add_fake_model(repository, "listed", KIND_MODEL + LISTED)
    add_fake_model(repository, "unary", KIND_MODEL + UNARY)
    add_fake_model(repository, "warm", KIND_MODEL + WARM_UP)
    add_fake_model(repository, "pair", 'backend: "octavo"\ninstance_group [ { count: 2 kind: KIND_CPU } ]\n')
    add_fake_model(repository, "all", KIND_MODEL + "version_policy { all { } }\n", versions=("1", "2"))
    add_fake_model(
        repository, "second", KIND_MODEL + "version_policy { specific { versions: [2] } }\n", ("1", "2", "3")
    )
    add_fake_model(repository, "batch", KIND_MODEL + "max_batch_size: 8\n")
    add_fake_model(repository, "two_devices", tensor_parallel_size=2)
    add_fake_model(repository, "cpu_and_cuda", 'backend: "octavo"\ninstance_group [{kind: KIND_CPU}]\n', device="cuda")
    add_fake_model(repository, "no_adapters", enable_lora="true")
    add_fake_model(repository, "slip", max_modellen=8)
    add_fake_model(repository, "not_downloaded", model="octo/none")
    (add_fake_model(repository, "no_arguments") / "1" / "model.json").unlink()
    with killed_afterwards(options_for(repository, server_dir)) as running:
        yield running


@pytest.fixture
def use(server: TritonServer) -> Iterator[Any]:
    """Loads models, and afterwards unloads them and waits until they have left nothing behind."""
    used: list[str] = []

    def load_one(name: str) -> None:
        used.append(name)
        assert load(server, name) == (200, "")

    yield load_one
    for name in used:
        unload(server, name)
    clients.wait_until(lambda: num_processes(server) == (0, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("batch", "max_batch_size: 8 is not allowed; expected 0"),
        ("two_devices", "engine argument tensor_parallel_size: 2 is not supported yet"),
        ("cpu_and_cuda", "has device: 'cuda', but the instance group in config.pbtxt is KIND_CPU"),
        ("no_adapters", "Triton backend cannot find "),
        ("slip", "unknown engine argument 'max_modellen'; did you mean 'max_model_len'?"),
        ("not_downloaded", "`hf download octo/none`"),
        ("no_arguments", "'model.json' containing octavo engine args must be provided in '"),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line(server: TritonServer, name: str, said: str) -> None:
    status, error = load(server, name)
    assert status == 400
    assert said in error
    clients.wait_until(lambda: num_processes(server) == (0, 0))


@pytest.mark.slow
def test_a_config_that_names_only_the_backend_is_completed(server: TritonServer, use: Any) -> None:
    use("bare")
    config = clients.config_of(server, "bare")
    assert {"text_input", "stream", "sampling_parameters"} <= {entry["name"] for entry in config["input"]}
    assert "text_output" in {entry["name"] for entry in config["output"]}
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert generate(server, "bare")[0] == 200
    assert num_processes(server) == (1, 1)


@pytest.mark.slow
def test_what_a_config_lists_itself_is_kept_and_the_rest_added(server: TritonServer, use: Any) -> None:
    use("listed")
    names = [entry["name"] for entry in clients.config_of(server, "listed")["input"]]
    assert names[:2] == ["text_input", "stream"]
    assert "sampling_parameters" in names[2:]
    assert len(names) == len(set(names))
    assert generate(server, "listed", sampling_parameters='{"max_tokens": 2}')[0] == 200


@pytest.mark.slow
def test_a_model_that_is_not_decoupled_stays_so(server: TritonServer, use: Any) -> None:
    use("unary")
    assert clients.config_of(server, "unary")["model_transaction_policy"] == {"decoupled": False}
    with grpcclient.InferenceServerClient(server.grpc_address) as client:
        result = client.infer("unary", clients.request_tensors("hello", {"max_tokens": 2}))
        assert result.as_numpy("text_output")[0].startswith(b"hello")


@pytest.mark.slow
def test_the_servers_own_warm_up_works_for_a_decoupled_model(server: TritonServer, use: Any) -> None:
    use("warm")
    assert generate(server, "warm")[0] == 200


@pytest.mark.slow
def test_two_instances_are_two_engines_that_share_the_requests(server: TritonServer, use: Any) -> None:
    use("pair")
    assert num_processes(server) == (2, 2)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: generate(server, "pair", max_tokens=20), range(32)))
    assert {status for status, _ in answers} == {200}
    assert len({answer["text_output"] for _, answer in answers}) == 1


@pytest.mark.slow
def test_versions_and_models_are_served_side_by_side(server: TritonServer, use: Any) -> None:
    use("all")
    use("second")
    assert num_processes(server) == (3, 3)
    for model, version in (("all/versions/1", "1"), ("all/versions/2", "2"), ("all", "2"), ("second", "2")):
        status, answer = generate(server, model)
        assert (status, answer["model_version"]) == (200, version)
    assert generate(server, "second/versions/1")[0] == 404
    assert generate(server, "second/versions/3")[0] == 404


@pytest.mark.slow
def test_unloading_under_load_lets_streams_end_and_turns_others_away(server: TritonServer) -> None:
    assert load(server, "busy") == (200, "")
    _, answer = generate(server, "busy", max_tokens=NUM_TOKENS)
    begun = threading.Barrier(9, timeout=60)

    def read(_: int) -> str:
        text = ""
        body = {"text_input": "hello", "max_tokens": NUM_TOKENS, "seed": 1}
        with clients.http_stream(server, body, model="busy") as events:
            for event in events:
                if not text:
                    begun.wait()
                text += event["text_output"]
        return text

    with ThreadPoolExecutor(8) as pool:
        readers = pool.map(read, range(8))
        begun.wait()
        unload(server, "busy")
        status, refused = generate(server, "busy")
        assert status == 404
        assert "has no available versions" in refused["error"]
        assert list(readers) == [answer["text_output"]] * 8
    clients.wait_until(lambda: num_processes(server) == (0, 0))
    assert load(server, "busy") == (200, "")
    assert generate(server, "busy", max_tokens=NUM_TOKENS)[1] == answer
    unload(server, "busy")
    clients.wait_until(lambda: num_processes(server) == (0, 0))


@pytest.mark.slow
def test_a_model_is_loaded_anew_under_load_without_losing_a_request(server: TritonServer) -> None:
    assert load(server, "busy") == (200, "")
    (first,) = clients.processes(server)["engine"]
    stop = threading.Event()

    def ask(_: int) -> list[tuple[int, dict[str, Any]]]:
        answers = [generate(server, "busy", max_tokens=20)]
        while not stop.is_set():
            answers.append(generate(server, "busy", max_tokens=20))
        return answers

    with ThreadPoolExecutor(4) as pool:
        askers = pool.map(ask, range(4))
        # The server starts a model anew, beside the old one, only when its files have changed.
        repository = Path(server.options.model_repository)
        (repository / "busy" / "1" / "model.json").touch()
        try:
            assert load(server, "busy") == (200, "")
            clients.wait_until(lambda: not first.is_running())
        finally:
            stop.set()
        answers = [answer for found in askers for answer in found]
    assert {status for status, _ in answers} == {200}
    clients.wait_until(lambda: num_processes(server) == (1, 1))
    unload(server, "busy")
    clients.wait_until(lambda: num_processes(server) == (0, 0))
