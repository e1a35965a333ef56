"""Model repositories, most of them over the fake executor, which loads in a second or two, and servers over them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import triton_clients as clients

from octavo.testing import make_fake_model
from octavo_triton.launch import ServerOptions, TritonServer, free_port

KIND_MODEL = 'backend: "octavo"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]\n'
UNARY = "model_transaction_policy { decoupled: false }\n"
REPORTING = 'parameters { key: "REPORT_CUSTOM_METRICS" value { string_value: "true" } }\n'
CONTEXT = 50_000
# One that takes no time; of the one that add_fake_model takes, a step lasts some milliseconds.
FAST = "octavo.testing:create_fake_executor"


def add_model(
    repository: Path, name: str, config: str = KIND_MODEL, versions: Sequence[str] = ("1",), **arguments: Any
) -> Path:
    """A model with these engine arguments in its model.json: with none, the embedded one. Returns its folder."""
    folder = repository / name
    for version in versions:
        (folder / version).mkdir(parents=True)
        (folder / version / "model.json").write_text(json.dumps(arguments), encoding="utf-8")
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    return folder


def add_fake_model(
    repository: Path, name: str, config: str = KIND_MODEL, versions: Sequence[str] = ("1",), **arguments: Any
) -> Path:
    """A model whose steps take some milliseconds, with its weights beside its versions. Returns its folder."""
    weights = make_fake_model(repository / name / "weights", max_position_embeddings=CONTEXT)
    engine = {"model": f"$$TRITON_MODEL_DIRECTORY/{weights.name}", "executor": "octavo.testing:create_paced_executor"}
    return add_model(repository, name, config, versions, **(engine | arguments))


def options_for(repository: Path | tuple[Path, ...], server_dir: Path, **settings: Any) -> ServerOptions:
    """A server on free ports; under explicit model control, with nothing loaded, unless told otherwise.

    `load_models=None` is the server's own way: it loads all at its start and never unloads one.
    """
    defaults: dict[str, Any] = {"load_models": (), "start_timeout_s": 120}
    return ServerOptions(
        model_repository=repository,
        server_dir=server_dir,
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        **(defaults | settings),
    )


@contextmanager
def killed_afterwards(options: ServerOptions) -> Iterator[TritonServer]:
    """A server for tests that do not ask how it ends: gently takes seconds, and sometimes its whole exit timeout.

    For in this release a stream that ends by `triton_grpc_error`, or that is cancelled at the moment of its end, now
    and then keeps its model alive.
    """
    with TritonServer(options) as server:
        yield server
        server.kill()


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
