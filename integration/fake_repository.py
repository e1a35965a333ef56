"""Model repositories over the fake executor, and servers that load from them in a second or two."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_clients as clients

from octavo.testing import make_fake_model
from octavo_triton.launch import ServerOptions, TritonServer, free_port

KIND_MODEL = 'backend: "octavo"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]\n'
CONTEXT = 50_000


def add_fake_model(
    repository: Path, name: str, config: str = KIND_MODEL, versions: Sequence[str] = ("1",), **arguments: Any
) -> Path:
    """A model whose steps take some milliseconds; `arguments` are added to its model.json. Returns its folder."""
    folder = repository / name
    weights = make_fake_model(folder / "weights", max_position_embeddings=CONTEXT)
    engine = {"model": f"$$TRITON_MODEL_DIRECTORY/{weights.name}", "executor": "octavo.testing:create_paced_executor"}
    for version in versions:
        (folder / version).mkdir()
        (folder / version / "model.json").write_text(json.dumps(engine | arguments), encoding="utf-8")
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    return folder


def options_for(repository: Path, server_dir: Path, **settings: Any) -> ServerOptions:
    """A server on free ports; under explicit model control, with nothing loaded, unless told otherwise."""
    defaults: dict[str, Any] = {"load_models": (), "start_timeout_s": 120}
    return ServerOptions(
        model_repository=repository,
        server_dir=server_dir,
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        **(defaults | settings),
    )


def load(server: TritonServer, name: str) -> tuple[int, str]:
    """Asks the server to load a model; the status, and the first line of the error."""
    status, answer = clients.post(server, f"/v2/repository/models/{name}/load", {})
    return status, str(answer.get("error", "")).split("\n")[0]


def unload(server: TritonServer, name: str) -> None:
    """Asks the server to unload a model; it goes on unloading after this has returned."""
    status, answer = clients.post(server, f"/v2/repository/models/{name}/unload", {})
    assert status == 200, answer


def generate(server: TritonServer, model: str, prompt: str = "hello", **parameters: Any) -> tuple[int, dict[str, Any]]:
    """Posts to /generate of "name" or "name/versions/2"; the completion has 4 tokens unless told otherwise."""
    body = {"text_input": prompt, "max_tokens": 4, "seed": 1, "exclude_input_in_output": True} | parameters
    return clients.post(server, f"/v2/models/{model}/generate", body)


def num_processes(server: TritonServer) -> tuple[int, int]:
    """How many stubs and engine processes the server has."""
    found = clients.processes(server)
    return len(found["stub"]), len(found["engine"])
