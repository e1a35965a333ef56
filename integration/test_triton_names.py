"""Our backend under other names: as `vllm`, for clients that look for it, and through the server's own `python`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import triton_clients as clients
from model_repositories import FAST, add_fake_model, add_model, killed_afterwards, options_for

from octavo_triton.launch import LaunchError, ServerOptions, TritonServer

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHON_EXAMPLE = REPOSITORY / "examples/triton_python_backend/smollm2"

# A model as the server's vLLM backend documents it.
VLLM_CONFIG = """
# Note: You do not need to change any fields in this configuration.
backend: "vllm"

# The usage of device is deferred to the vLLM engine
instance_group [
  {
    count: 1
    kind: KIND_MODEL
  }
]
"""
VLLM_ARGUMENTS = {"disable_log_stats": True, "gpu_memory_utilization": 0.5, "enforce_eager": True, "dtype": "float32"}


def options(server_dir: Path, *repositories: Path, backend_name: str) -> ServerOptions:
    no_byte_code = {"PYTHONDONTWRITEBYTECODE": "1"}
    return options_for(repositories, server_dir, load_models=None, backend_name=backend_name, environment=no_byte_code)


@pytest.fixture(scope="module")
def vllm_server(server_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Two repositories under the name vllm: one of ours, one written for vLLM."""
    folder = tmp_path_factory.mktemp("names")
    ours, theirs = folder / "ours", folder / "theirs"
    add_fake_model(ours, "from_the_version_folder", 'backend: "octavo"\n', executor=FAST, model="../weights")
    weights = add_fake_model(ours, "from_the_models_folder", "backend: 'octavo'\n", executor=FAST) / "weights"
    add_model(theirs, "vllm_model", VLLM_CONFIG, executor=FAST, model=str(weights), **VLLM_ARGUMENTS)
    python_config = (PYTHON_EXAMPLE / "config.pbtxt").read_text(encoding="utf-8")
    shim = add_model(theirs, "through_python", python_config, executor=FAST, model=str(weights))
    (shim / "1/model.py").write_text((PYTHON_EXAMPLE / "1/model.py").read_text(encoding="utf-8"), encoding="utf-8")
    with killed_afterwards(options(server_dir, ours, theirs, backend_name="vllm")) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("model", ["from_the_version_folder", "from_the_models_folder", "vllm_model"])
def test_models_are_served_by_the_backend_named_vllm(vllm_server: TritonServer, model: str) -> None:
    assert clients.config_of(vllm_server, model)["backend"] == "vllm"
    body = {"text_input": "abc", "max_tokens": 4, "seed": 1}
    status, answer = clients.post(vllm_server, f"/v2/models/{model}/generate", body)
    assert status == 200, answer
    assert answer["text_output"].startswith("abc")


@pytest.mark.slow
def test_a_model_of_the_servers_python_backend_needs_one_import(vllm_server: TritonServer) -> None:
    assert clients.config_of(vllm_server, "through_python")["backend"] == "python"
    body = {"text_input": "abc", "max_tokens": 4, "seed": 1}
    answers = [
        clients.post(vllm_server, f"/v2/models/{model}/generate", body)[1]["text_output"]
        for model in ("through_python", "vllm_model")
    ]
    assert answers[0] == answers[1]
    stream = {"text_input": "abc", "max_tokens": 300, "stream": True, "ignore_eos": True}
    with clients.http_stream(vllm_server, stream, model="through_python") as events:
        assert len("".join(event["text_output"] for event in events)) > 0


@pytest.mark.slow
def test_without_the_name_a_vllm_model_is_not_found_and_the_launcher_says_so(server_dir: Path, tmp_path: Path) -> None:
    add_model(tmp_path, "vllm_model", VLLM_CONFIG, model="nowhere")
    with (
        pytest.raises(LaunchError, match="BACKEND_NAME=vllm"),
        TritonServer(options(server_dir, tmp_path, backend_name="octavo")),
    ):
        pass
