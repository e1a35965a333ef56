"""The server holds to its own OpenAPI document, and survives whatever is sent to it.

Requests are made by schemathesis from the document, with a fixed seed; bodies that no schema describes are made here.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kserve_server import KServeServer, children, fake_arguments

pytestmark = pytest.mark.slow

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance",
)  # fmt: skip
# Loading and unloading has tests of its own: here it would take the model from under the other requests.
NOT_HERE = "^/v2/repository/models/"
# Other names of routes that are asked under /v1, or without a version.
ALIASES = "^/openai/v1/|^/(v2/)?rerank$|^/score$|/versions/1/(generate|infer)"
ANSWER_TIMEOUT_S = 20
LEAST_REQUESTS = 1_000
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "seed": 5}
KEY = "secret"
HEAD = {"Authorization": f"Bearer {KEY}"}
PROBES = {
    "/", "/health", "/v2/health/live", "/v2/health/ready", "/v2/models/{name}/ready",
    "/v2/models/{name}/versions/1/ready",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KServeServer]:
    """One that asks for a key, over a model that takes no time."""
    folder = tmp_path_factory.mktemp("server")
    arguments = fake_arguments(folder, executor="octavo.testing:create_fake_executor", max_model_len=256)
    more = ["--served_model_name", "alias", "--max_body_bytes=200000"]
    with KServeServer(folder / "log", *arguments, *more, environment={"OCTAVO_API_KEYS": KEY}) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: KServeServer) -> dict[str, Any]:
    """The server's own."""
    status, text = server.get("/openapi.json", HEAD)
    assert status == 200
    return dict(json.loads(text))


@pytest.fixture(autouse=True)
def _unharmed(server: KServeServer) -> Iterator[None]:
    """After each test, the server answers as before, nothing is left running, and its engine is the same process."""
    before = said(server)
    engines = children(server.process.pid)
    yield
    assert said(server) == before
    for gauge in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        server.wait_until(lambda gauge=gauge: metric(server, gauge) == 0)
    assert children(server.process.pid) == engines != []
    assert "Traceback" not in server.log()


def said(server: KServeServer) -> str:
    status, answer = server.post("/v1/chat/completions", CHAT, HEAD)
    assert status == 200, answer
    return str(answer["choices"][0]["message"]["content"])


def metric(server: KServeServer, name: str) -> float:
    """One gauge of the model, of a server that asks for keys."""
    page = server.get("/metrics", HEAD)[1]
    return next(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(f"{name}{{"))


def num_requests(server: KServeServer) -> int:
    """Those that the server has written into its log, where probes are not."""
    return server.log().count(' HTTP/1.1" ')


def test_a_thousand_requests_made_from_the_document_are_answered_as_it_says(
    server: KServeServer, tmp_path: Path
) -> None:
    before = num_requests(server)
    command = [Path(sys.executable).parent / "schemathesis", "run", f"{server.url}/openapi.json"]
    options = [
        f"--header=Authorization: Bearer {KEY}", f"--checks={','.join(CHECKS)}",
        f"--exclude-path-regex={NOT_HERE}|{ALIASES}",
        f"--request-timeout={ANSWER_TIMEOUT_S}", "--seed=1", "--continue-on-failure", "--no-shrink", "--no-color",
        "--suppress-health-check=all", "--generation-database=none",
        "--phases=examples,coverage,fuzzing", "--max-examples=5",
    ]  # fmt: skip
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    assert num_requests(server) - before >= LEAST_REQUESTS


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


BODIES = [
    b"", b"\0", b"{", b"null", b"[]", b"5", b'"x"', b"NaN", b"\xff\xfe{}", b"{}" * 1000, b'{"a": \0}',
    b'{"\\ud800": "\\ud800"}', "{'text': “x”}".encode(), b"a=1&b=2", b"--x\r\n\r\n--x--", b"<a/>", b" " * 300_000,
    *(b'{"x": %s}' % nested(depth) for depth in (500, 900, 960, 975, 990, 100_000)),
    # Deep enough for what writes it anew, and not for what reads it: where that is depends on the route.
    *(b'{"instances": [{"text_input": "x", "x": %s}]}' % nested(depth) for depth in range(900, 1000, 3)),
    *(b'{"text_input": "x", "max_tokens": 1, "x": %s}' % nested(depth) for depth in range(900, 1000, 3)),
]  # fmt: skip
FIELDS = (
    "prompt",
    "messages",
    "tokens",
    "input",
    "tools",
    "text_input",
    "inputs",
    "instances",
    "parameters",
    "n",
    "stop",
    "timeout",
    "id",
)
VALUES = [
    b"1e999", b"-1e999", b"1" * 400, b"NaN", b"-Infinity", b"[[]]", b"[{}]", b"[null]", b"{}", b"true", nested(970),
    b'"\\u0000"', b'"\\ud800"', '"\u202e\U0001f98a\ufeff"'.encode(), b'[["a"], ["b"]]', b'"%s"' % (b"x" * 100_000),
]  # fmt: skip
TYPES = [
    "application/json",
    "text/plain",
    "application/json; charset=utf-16",
    "application/cloudevents+json",
    "\xff/\xfe",
]


def post_paths(document: dict[str, Any]) -> list[str]:
    """Of all routes with a body."""
    paths = [path for path, methods in document["paths"].items() if "post" in methods and not re.match(NOT_HERE, path)]
    assert len(paths) > 10
    return [re.sub(r"\{\w+\}", "fake", path) for path in paths]


def test_bodies_that_no_schema_describes_are_refused_in_time(server: KServeServer, document: dict[str, Any]) -> None:
    bodies = BODIES + [b'{"%s": %s}' % (name.encode(), value) for name in FIELDS for value in VALUES]
    for path in post_paths(document):
        for body, kind in zip(bodies, itertools.cycle(TYPES), strict=False):
            send(server, path, body, {"Content-Type": kind})


@pytest.mark.parametrize(
    "headers",
    [
        {"Inference-Header-Content-Length": "5"},
        {"Inference-Header-Content-Length": "9" * 30},
        {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "x", "ce-type": "y"},
        {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "x", "ce-type": "y", "ce-time": "never"},
        {"Content-Encoding": "gzip"},
        {"X-Request-Id": "\xe9"},
    ],
)
def test_headers_that_promise_another_body_are_survived(
    server: KServeServer, document: dict[str, Any], headers: dict[str, str]
) -> None:
    for path in post_paths(document):
        for body in (b"", b"\0" * 10, json.dumps(CHAT).encode()):
            send(server, path, body, headers)


@pytest.mark.parametrize("datatype", ["INT8", "UINT8", "INT64", "UINT64", "FP16", "BF16", "BOOL", "BYTES", "NONE"])
def test_tensors_whose_data_does_not_fit_are_refused(server: KServeServer, datatype: str) -> None:
    for shape, value in itertools.product(
        ([], [0], [1], [-1], [2], [2**62], [10**30]), (300, -1, 10**30, 1.5, None, True, "x", "\ud800", {}, [[1]])
    ):
        tensor = {"name": "text_input", "shape": shape, "datatype": datatype, "data": [value]}
        body = {"inputs": [tensor], "parameters": {"max_tokens": 1}}
        send(server, "/v2/models/fake/infer", json.dumps(body).encode(), {})


def test_every_route_says_what_it_is_for_and_what_it_answers(document: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"] and set(operation["tags"]) <= tags != set(), path
            for status, response in operation["responses"].items():
                assert response["description"]
                assert path == "/health" or all(response["content"].values()), (path, status)
            assert method == "get" or "requestBody" in operation or re.match(NOT_HERE, path)
            assert (operation.get("security") is None) == (path in PROBES), path


def test_every_example_is_answered_or_refused_for_its_task(server: KServeServer, document: dict[str, Any]) -> None:
    schemas, num_examples = document["components"]["schemas"], 0
    for path, methods in document["paths"].items():
        if "requestBody" in methods.get("post", ()):
            reference = methods["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            for example in schemas[reference.rpartition("/")[2]]["examples"]:
                num_examples += 1
                status, answer = server.post(re.sub(r"\{\w+\}", "fake", path), example, HEAD)
                if "embeddings" in methods["post"]["tags"]:
                    assert (status, answer["error"]["param"]) == (400, "model"), (path, answer)
                else:
                    assert status == 200, (path, answer)
    assert num_examples > len(post_paths(document))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/models/a%0Ab", 404, "model_not_found"),
        ("GET", "/openai/v1/models/a%0Ab", 404, "not_found"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/fake", 405, "method_not_allowed"),
        ("GET", "/v2/models/fake/generate", 405, None),
        ("GET", "/v2/nowhere", 404, None),
        ("GET", "/v2/models/fake/versions/2", 404, None),
    ],
)
def test_a_path_or_a_method_that_is_none_is_told_as_other_errors_are(
    server: KServeServer, method: str, path: str, status: int, code: str | None
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=ANSWER_TIMEOUT_S)
    connection.request(method, path, headers=HEAD)
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    connection.close()
    assert response.status == status
    assert (error["code"] == code and error["message"]) if code else (isinstance(error, str) and error)
    assert (response.headers["Allow"] is not None) == (status == 405)


def send(server: KServeServer, path: str, body: bytes, headers: dict[str, str]) -> None:
    """Posts it; what comes back is no server error, and comes in time."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=ANSWER_TIMEOUT_S)
    begun = time.monotonic()
    try:
        connection.request("POST", path, body, HEAD | headers)
        response = connection.getresponse()
        answer = response.read()
    except ConnectionError:
        # What was on its way when the server had seen enough of it.
        assert len(body) > 200_000
    else:
        assert response.status < 500, (path, body[:200], answer)
    finally:
        connection.close()
    assert time.monotonic() - begun < ANSWER_TIMEOUT_S
