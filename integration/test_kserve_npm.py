"""The official client for JavaScript against a real server: what it sees is what plain HTTP says."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kserve_server import KServeServer, fake_arguments

pytestmark = pytest.mark.slow

CLIENT = Path(__file__).resolve().parent / "npm"
INSTALLED = CLIENT.parent.parent / ".cache/npm"
KEY = "secret"
HEAD = {"Authorization": f"Bearer {KEY}"}
CHAT = {"messages": [{"role": "user", "content": "Hello 🦊"}], "seed": 3, "max_tokens": 24}
COMPLETION = {"prompt": "The sea", "seed": 3, "max_tokens": 24}


@pytest.fixture(scope="module")
def client() -> Path:
    """The folder of the script beside the installed client, installed once for each state of the lock file."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not on PATH")
    lock = (CLIENT / "package-lock.json").read_bytes()
    folder = INSTALLED / hashlib.sha256(lock).hexdigest()[:16]
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
    # npm writes this file last.
    if not (folder / "node_modules/.package-lock.json").exists():
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=120
        )
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KServeServer]:
    folder = tmp_path_factory.mktemp("server")
    environment = {"OCTAVO_API_KEYS": KEY}
    with KServeServer(folder / "log", *fake_arguments(folder), environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def seen(client: Path, server: KServeServer) -> dict[str, Any]:
    """What the script has printed."""
    command = ["node", client / "check.mjs", f"{server.url}/v1", "fake", KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def ask(server: KServeServer, route: str, body: dict[str, Any]) -> dict[str, Any]:
    """The plain answer."""
    status, answer = server.post(f"/v1/{route}", body, HEAD)
    assert status == 200, answer
    return dict(answer)


def texts(answer: dict[str, Any]) -> dict[str, str]:
    """Of each choice."""
    found = {str(each["index"]): each.get("text") or each["message"]["content"] for each in answer["choices"]}
    assert all(found.values())
    return found


@pytest.mark.parametrize(
    ("name", "route", "body"),
    [
        ("chat", "chat/completions", CHAT),
        ("chat_two", "chat/completions", CHAT | {"n": 2}),
        ("completion", "completions", COMPLETION),
    ],
)
def test_texts_ends_and_counts_are_those_of_plain_http(
    server: KServeServer, seen: dict[str, Any], name: str, route: str, body: dict[str, Any]
) -> None:
    plain, whole, stream = ask(server, route, body), seen[name], seen[f"{name}_stream"]
    assert texts(whole) == stream["texts"] == texts(plain)
    ends = {str(choice["index"]): [choice["finish_reason"]] for choice in plain["choices"]}
    assert stream["ends"] == ends
    assert stream["chunks"] > len(ends)
    for usage in (whole["usage"], stream["usage"]):
        assert usage["completion_tokens"] == plain["usage"]["completion_tokens"] == 24 * len(ends)
        assert usage["prompt_tokens"] == plain["usage"]["prompt_tokens"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_two_choices_are_two_texts(seen: dict[str, Any]) -> None:
    assert len(set(texts(seen["chat_two"]).values())) == 2


def test_logprobs_spell_the_text(seen: dict[str, Any]) -> None:
    (choice,) = seen["chat_logprobs"]["choices"]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    # The fake model knows of no candidate but the one it chose.
    assert all(
        [top["token"] for top in token["top_logprobs"]] == [token["token"]] and token["logprob"] <= 0
        for token in tokens
    )
    (choice,) = seen["completion_logprobs"]["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert len(choice["logprobs"]["token_logprobs"]) == len(choice["logprobs"]["top_logprobs"]) == 24


def test_models_are_listed_and_found(seen: dict[str, Any]) -> None:
    assert seen["models"] == ["fake"]
    assert (seen["model"]["id"], seen["model"]["object"]) == ("fake", "model")


@pytest.mark.parametrize(
    ("name", "kind", "status", "code", "param"),
    [
        ("bad_value", "BadRequestError", 400, "invalid_value", "temperature"),
        ("bad_value_streamed", "BadRequestError", 400, "invalid_value", "max_tokens"),
        ("unknown_model", "NotFoundError", 404, "model_not_found", "model"),
        ("without_key", "AuthenticationError", 401, "invalid_api_key", None),
    ],
)
def test_errors_come_as_the_clients_own(
    seen: dict[str, Any], name: str, kind: str, status: int, code: str, param: str | None
) -> None:
    told = {"kind": kind, "status": status, "code": code, "param": param, "type": "invalid_request_error"}
    assert seen[name] == told


def test_a_stream_that_is_aborted_ends_its_request(server: KServeServer, seen: dict[str, Any]) -> None:
    assert seen["aborted_after"] == 3

    def metric(name: str, *labels: str) -> float:
        page = server.get("/metrics", HEAD)[1].splitlines()
        (line,) = [line for line in page if line.startswith(f"{name}{{") and all(label in line for label in labels)]
        return float(line.rpartition(" ")[2])

    server.wait_until(lambda: metric("vllm:num_requests_running") == 0)
    server.wait_until(lambda: metric("octavo:request_finished_total", 'finished_reason="cancelled"') == 1)


def test_the_lock_file_names_no_host() -> None:
    assert "resolved" not in (CLIENT / "package-lock.json").read_text(encoding="utf-8")
