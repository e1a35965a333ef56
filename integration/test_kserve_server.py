"""One server over the fake executor, with every protocol, as clients see it."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as v2_client
from kserve_server import KServeServer, fake_arguments
from tritonclient.utils import InferenceServerException

from octavo_triton.launch import free_port

pytestmark = pytest.mark.slow

KEY = {"Authorization": "Bearer secret-2"}
GENERATE = "/v2/models/fake/generate"
ASK = {"text_input": "hello", "max_tokens": 8, "seed": 1, "exclude_input_in_output": True}
TENSOR = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["x"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KServeServer]:
    folder = tmp_path_factory.mktemp("server")
    arguments = fake_arguments(folder)
    (folder / "models.json").write_text(json.dumps({"second": {"model": "fake"}}))
    more = ["--served-model-name", "alias", "--models", str(folder / "models.json"), "--max-body-bytes=20000"]
    with KServeServer(folder / "log", *arguments, *more) as running:
        yield running


def text_of(server: KServeServer, model: str = "fake") -> str:
    """What the model says to ASK."""
    status, answer = server.post(f"/v2/models/{model}/generate", ASK)
    assert status == 200, answer
    return str(answer["text_output"])


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/v2/health/live", "/v2/health/ready", "/v2/models/fake/ready", "/v2/models/alias/ready",
     "/v1/models/fake", "/v1/models", "/openai/v1/models", "/v2", "/v2/models/fake", "/metrics"],
)  # fmt: skip
def test_a_ready_server_says_so_everywhere(server: KServeServer, path: str) -> None:
    assert server.get(path)[0] == 200


def test_generate_answers_once_and_its_stream_in_pieces(server: KServeServer) -> None:
    ask = ASK | {"max_tokens": 60, "return_finish_reason": True}
    whole = server.post(GENERATE, ask)[1]["text_output"]
    events = list(server.events(f"{GENERATE}_stream", ask | {"stream": True}))
    assert len(whole) == 60
    assert "".join(event["text_output"] for event in events) == whole
    assert [event["finish_reason"] for event in events].count("length") == 1
    assert len(events) > 1


def test_every_name_and_every_model_of_the_file_answers(server: KServeServer) -> None:
    assert text_of(server, "alias") == text_of(server, "second") == text_of(server)
    names = json.loads(server.get("/v1/models")[1])
    assert names["models"] == ["fake", "alias", "second"]
    assert [card["id"] for card in names["data"]] == names["models"]


@pytest.mark.parametrize("binary", [False, True])
def test_the_client_of_the_v2_protocol_gets_the_tensors(server: KServeServer, binary: bool) -> None:
    client = v2_client.InferenceServerClient(f"127.0.0.1:{server.http_port}")
    text = v2_client.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"hello"], dtype=np.object_), binary_data=binary)
    exclude = v2_client.InferInput("exclude_input_in_output", [1], "BOOL")
    exclude.set_data_from_numpy(np.array([True]), binary_data=binary)
    counts = v2_client.InferInput("return_num_output_tokens", [1], "BOOL")
    counts.set_data_from_numpy(np.array([True]), binary_data=binary)
    wanted = [v2_client.InferRequestedOutput(name, binary_data=binary) for name in ("text_output", "num_output_tokens")]
    answer = client.infer(
        "fake", [text, exclude, counts], outputs=wanted, request_id="7", parameters={"max_tokens": 8, "seed": 1}
    )
    client.close()
    said = answer.as_numpy("text_output")[0]
    assert (said if isinstance(said, str) else said.decode()) == text_of(server)
    assert answer.as_numpy("num_output_tokens").tolist() == [8]
    assert answer.get_response()["id"] == "7"


@pytest.mark.parametrize("version", ["", "1"])
def test_the_client_of_the_v2_protocol_is_told_of_health_and_tensors(server: KServeServer, version: str) -> None:
    client = v2_client.InferenceServerClient(f"127.0.0.1:{server.http_port}")
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("fake", version)
    assert not client.is_model_ready("fake", "2") and not client.is_model_ready("nobody", version)
    metadata = client.get_model_metadata("fake", version)
    assert {"name": "text_input", "datatype": "BYTES", "shape": [1]} in metadata["inputs"]
    assert {"name": "text_output", "datatype": "BYTES", "shape": [-1]} in metadata["outputs"]
    text = v2_client.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"hello"], dtype=np.object_))
    said = client.infer("fake", [text], version, parameters={"max_tokens": 8, "seed": 1}).as_numpy("text_output")[0]
    assert said.decode() == "hello" + text_of(server)
    for name, parameters, words in (("nobody", {}, "nobody"), ("fake", {"max_tokens": -1}, "max_tokens")):
        with pytest.raises(InferenceServerException, match=words):
            client.infer(name, [text], version, parameters=parameters)
    client.close()


_GRPC = """
import sys, numpy as np, tritonclient.grpc as v2
client = v2.InferenceServerClient(sys.argv[1])
print(client.is_server_live(), client.is_server_ready(), client.is_model_ready("fake"))
print(len(client.get_model_metadata("fake").inputs) > 3)
text = v2.InferInput("text_input", [1], "BYTES"); text.set_data_from_numpy(np.array([b"hello"], dtype=object))
exclude = v2.InferInput("exclude_input_in_output", [1], "BOOL"); exclude.set_data_from_numpy(np.array([True]))
answer = client.infer("fake", [text, exclude], parameters={"max_tokens": 8, "seed": 1})
print(answer.as_numpy("text_output")[0].decode())
for name, parameters in (("fake", {"max_tokens": -1}), ("nobody", {})):
    try:
        client.infer(name, [text], parameters=parameters)
    except v2.InferenceServerException as error:
        print(error.status(), "max_tokens" in error.message())
"""


def test_grpc_speaks_the_same_protocol(server: KServeServer) -> None:
    command = [sys.executable, "-c", _GRPC, f"127.0.0.1:{server.grpc_port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    health, metadata, text, *errors = done.stdout.splitlines()
    assert (health, metadata, text) == ("True True True", "True", text_of(server))
    assert errors == ["StatusCode.INVALID_ARGUMENT True", "StatusCode.NOT_FOUND False"]


def test_v1_predict_runs_every_instance(server: KServeServer) -> None:
    status, answer = server.post("/v1/models/fake:predict", {"instances": ["hello", ASK]})
    assert status == 200
    assert answer["predictions"][1] == {"text_output": text_of(server)}
    assert len(answer["predictions"][0]["text_output"]) == 16


def test_openai_chats_stream_to_the_end(server: KServeServer) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "stream": True}
    for prefix in ("/v1", "/openai/v1"):
        assert list(server.events(f"{prefix}/chat/completions", body))[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        (GENERATE, {"text_input": "x", "max_tokens": -1}, 400, "max_tokens"),
        (GENERATE, {"text_input": "x", "stream": True}, 400, "stream"),
        (GENERATE, b"{", 400, "body"),
        ("/v2/models/nobody/generate", ASK, 404, "nobody"),
        (GENERATE, ASK | {"timeout": 1}, 408, "timeout"),
        (GENERATE, b" " * 20_001, 413, "20000"),
        ("/v2/models/fake/infer", {"inputs": []}, 400, "text_input"),
        ("/v2/models/fake/infer", {"inputs": [{"name": "text_input"}]}, 400, "inputs.0"),
        ("/v2/models/nobody/infer", {"inputs": []}, 404, "nobody"),
        ("/v1/models/fake:predict", {"instances": []}, 400, "instances"),
        ("/v1/models/fake:predict", {"instances": [1]}, 400, "instances[0]"),
        ("/v1/models/fake:predict", {"instances": ["x"] * 1025}, 400, "1025 instances"),
        ("/v2/models/fake/infer", {"inputs": [{}] * 1000}, 400, "1000 tensors"),
        ("/v2/models/fake/infer", {"inputs": [TENSOR, TENSOR]}, 400, "each name once"),
        ("/v2/repository/models/nobody/unload", {}, 404, "nobody"),
        ("/v2/repository/index", {"ready": "x"}, 400, "ready"),
    ],
)
def test_errors_have_one_line_that_names_the_fault(
    server: KServeServer, path: str, body: object, status: int, word: str
) -> None:
    found, answer = server.post(path, body)
    assert found == status, answer
    assert word in answer["error"]


@pytest.mark.parametrize("length", ["x", "-1", "2", "100"])
def test_a_binary_request_that_is_none_is_refused(server: KServeServer, length: str) -> None:
    header = {"Inference-Header-Content-Length": length}
    assert server.post("/v2/models/fake/infer", b"{}  ", header)[0] == 400


def test_the_content_type_need_not_be_told(server: KServeServer) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for path, body in (
        ("/v2/models/fake/infer", {"inputs": [TENSOR]}),
        ("/v1/models/fake:predict", {"instances": ["x"]}),
        (GENERATE, ASK),
    ):
        assert server.post(path, body, form)[0] == 200


def test_a_body_of_unknown_length_is_bounded_too(server: KServeServer) -> None:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as connection:
        connection.sendall(f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        connection.sendall(b"5000\r\n" + b"x" * 0x5000 + b"\r\n")
        assert b" 413 " in connection.recv(100)


def test_headers_without_end_are_hung_up_on(server: KServeServer) -> None:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as connection:
        try:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000)
            assert connection.recv(1) == b""
        except ConnectionError:
            # What was on its way when the server hung up.
            pass
    assert server.status("/health") == 200


def test_trailers_without_end_are_hung_up_on(server: KServeServer) -> None:
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as connection:
        connection.sendall(head.encode())
        with pytest.raises(ConnectionError):
            connection.sendall((b"X-Trailer: " + b"x" * 5_000 + b"\r\n") * 10_000)
    assert server.status("/health") == 200


@pytest.mark.parametrize(
    "path",
    [GENERATE, f"{GENERATE}_stream", "/v2/models/fake/infer", "/v1/completions", "/v1/models/fake:predict"],
)
def test_a_client_that_leaves_cancels_its_request(server: KServeServer, path: str) -> None:
    def cancelled() -> float:
        return server.metric("octavo:request_finished_total", finished_reason="cancelled", model_name="fake")

    def num_running() -> float:
        return server.metric("vllm:num_requests_running", model_name="fake")

    before = cancelled()
    long = {"text_input": "x", "max_tokens": 40_000, "stream": path.endswith("stream")}
    body = json.dumps(
        long
        | {"model": "fake", "prompt": "x", "instances": [long]}
        | ({"inputs": [TENSOR], "parameters": {"max_tokens": 40_000}} if path.endswith("infer") else {})
    )
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as connection:
        connection.sendall((head + body).encode())
        server.wait_until(lambda: num_running() == 1)
    server.wait_until(lambda: num_running() == 0)
    assert cancelled() == before + 1


@pytest.mark.parametrize("path", [GENERATE, f"{GENERATE}_stream", "/v1/chat/completions"])
def test_a_client_that_leaves_while_its_prompt_is_made_leaves_no_request_behind(
    server: KServeServer, path: str
) -> None:
    def num_live() -> float:
        return sum(server.metric(f"vllm:num_requests_{what}", model_name="fake") for what in ("running", "waiting"))

    def finished() -> float:
        return server.metric("octavo:request_finished_total", finished_reason="length", model_name="fake")

    before = finished()
    messages = [{"role": "user", "content": "x" * 18_000}]
    body = json.dumps({"model": "fake", "messages": messages, "max_tokens": 2_000, "ignore_eos": True})
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as connection:
            connection.sendall((head + body).encode())
    server.wait_until(lambda: num_live() == 0)
    assert finished() == before


_GRPC_LEAVES = """
import sys, numpy as np, tritonclient.grpc as v2
client = v2.InferenceServerClient(sys.argv[1])
text = v2.InferInput("text_input", [1], "BYTES"); text.set_data_from_numpy(np.array([b"x"], dtype=object))
try:
    client.infer("fake", [text], parameters={"max_tokens": 40000}, client_timeout=0.5)
except v2.InferenceServerException as error:
    print(error.status())
"""


def test_a_grpc_client_that_leaves_cancels_its_request(server: KServeServer) -> None:
    ended = {"finished_reason": "cancelled", "model_name": "fake"}
    before = server.metric("octavo:request_finished_total", **ended)
    command = [sys.executable, "-c", _GRPC_LEAVES, f"127.0.0.1:{server.grpc_port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "StatusCode.DEADLINE_EXCEEDED\n"
    server.wait_until(lambda: server.metric("octavo:request_finished_total", **ended) == before + 1)


def test_metrics_count_what_was_done_exactly(server: KServeServer) -> None:
    names = {"model_name": "second"}
    counted = {
        "vllm:generation_tokens_total": 8,
        "vllm:prompt_tokens_total": 5,
        "vllm:time_to_first_token_seconds_count": 1,
        "vllm:request_generation_tokens_sum": 8,
    }
    before = {name: server.metric(name, **names) for name in counted}
    text_of(server, "second")
    assert {name: server.metric(name, **names) - before[name] for name in counted} == counted
    page = server.get("/metrics")[1]
    assert 'vllm:cache_config_info{block_size="16",model_name="second",num_gpu_blocks="' in page
    assert "process_resident_memory_bytes" in page


def test_keys_open_every_route_and_health_needs_none(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret-2\n")
    metrics_port = free_port()
    arguments = [*fake_arguments(tmp_path), "--api-key-file", str(tmp_path / "keys"), f"--metrics-port={metrics_port}"]
    arguments += ["--access-log-format", "%(request_line)s -> %(status_code)s"]
    with KServeServer(tmp_path / "log", *arguments, environment={"OCTAVO_API_KEYS": "secret-1"}) as server:
        for path in ("/", "/health", "/v2/health/live", "/v2/health/ready", "/v2/models/fake/ready"):
            assert server.status(path) == 200, path
        for path in ("/metrics", "/v2", "/v2/models", "/v1/models", "/v1/models/fake", "/openapi.json", "/nowhere"):
            assert server.status(path) == 401, path
        assert server.post(GENERATE, ASK)[0] == 401
        assert server.post("/v2/repository/models/fake/unload", {})[0] == 401
        assert server.post(GENERATE, ASK, {"Authorization": "Bearer secret-3"})[0] == 401
        assert server.post("/v1/completions", {"model": "fake", "prompt": "x"})[1]["error"]["code"] == "invalid_api_key"
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=30) as connection:
            head = b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head + b"0\r\nAuthorization: Bearer secret-1\r\n\r\n")
            assert b" 401 " in connection.recv(100)
        assert server.post(GENERATE, ASK, KEY)[0] == 200
        assert server.post(GENERATE, ASK, {"Authorization": "Bearer secret-1"})[0] == 200
        assert f"POST {GENERATE} HTTP/1.1 -> 200 OK" in server.log()
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=30) as page:
            assert b"vllm:num_requests_running" in page.read()
        command = [sys.executable, "-c", _GRPC, f"127.0.0.1:{server.grpc_port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout.startswith("True True True")
        assert "StatusCode.UNAUTHENTICATED" in done.stderr


_GRPC_ENCRYPTED = """
import sys, tritonclient.grpc as v2
client = v2.InferenceServerClient(sys.argv[1], ssl=True, root_certificates=sys.argv[2])
print(client.is_server_ready(), client.is_model_ready("fake"))
"""


def test_with_a_certificate_http_and_grpc_are_encrypted(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*request, *names, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    trusting = ssl.create_default_context(cafile=str(certificate))
    files = [f"--ssl_certfile={certificate}", f"--ssl_keyfile={key}"]
    server = KServeServer(tmp_path / "log", *fake_arguments(tmp_path), *files)

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(
                f"https://localhost:{server.http_port}/v2/health/ready", timeout=30, context=trusting
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    server.start()
    try:
        server.wait_until(is_ready)
        command = [sys.executable, "-c", _GRPC_ENCRYPTED, f"localhost:{server.grpc_port}", certificate]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.stdout == "True True\n", done.stderr
        plain = subprocess.run(
            [sys.executable, "-c", _GRPC, f"localhost:{server.grpc_port}"], capture_output=True, text=True, timeout=60
        )
        assert "StatusCode.UNAVAILABLE" in plain.stderr
    finally:
        server.stop()
