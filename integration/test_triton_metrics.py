"""The server's metrics page: what is on it, that it counts exactly, and that it comes and goes with the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import triton_clients as clients
from model_repositories import (
    FAST,
    KIND_MODEL,
    REPORTING,
    add_fake_model,
    killed_afterwards,
    load,
    num_processes,
    options_for,
    unload,
)

from octavo import METRICS, HistogramMetric
from octavo_triton.launch import TritonServer

TWO_INSTANCES = 'backend: "octavo"\ninstance_group [ { count: 2 kind: KIND_CPU } ]\n'
PROMPT = "a prompt of a length that fills four blocks of sixteen tokens..."


@pytest.fixture(scope="module")
def metrics_server(server_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with fake models, none of them loaded."""
    repository = tmp_path_factory.mktemp("models")
    # The clients stream from "smollm2", whatever is behind it.
    add_fake_model(repository, "smollm2", KIND_MODEL + REPORTING, num_gpu_blocks_override=20_000)
    add_fake_model(repository, "tiny", KIND_MODEL + REPORTING, num_gpu_blocks_override=9, max_model_len=128)
    add_fake_model(repository, "reloaded", KIND_MODEL + REPORTING)
    add_fake_model(repository, "pair", TWO_INSTANCES + REPORTING, executor=FAST, num_gpu_blocks_override=20_000)
    add_fake_model(repository, "silent")
    add_fake_model(repository, "disabled", KIND_MODEL + REPORTING, disable_log_stats=True)
    with killed_afterwards(options_for(repository, server_dir)) as server:
        yield server


@pytest.fixture
def loaded(metrics_server: TritonServer) -> Iterator[TritonServer]:
    """With "smollm2", all of whose counters are zero."""
    load_anew(metrics_server, "smollm2")
    yield metrics_server
    unload(metrics_server, "smollm2")


def load_anew(server: TritonServer, name: str) -> None:
    """Waits for the last one's end and for the new one's lines."""
    clients.wait_until(lambda: not page(server, name))
    assert load(server, name) == (200, "")
    clients.wait_until(lambda: page(server, name).get("octavo:steps_total") == 0)


def page(server: TritonServer, model: str = "smollm2") -> dict[str, float]:
    """The model's own lines, by name and the labels beside model and version."""
    found = {}
    for name, labels, value in clients.metric_lines(server):
        if labels.pop("model", None) == model and labels.pop("version", None) == "1" and not name.startswith("nv_inf"):
            rest = ",".join(f"{key}={labels[key]}" for key in sorted(labels))
            found[f"{name}{{{rest}}}" if rest else name] = value
    return found


def complete(server: TritonServer, model: str = "smollm2", **sampling: object) -> None:
    sampling_parameters = json.dumps({"ignore_eos": True} | sampling)
    body = {"text_input": PROMPT, "sampling_parameters": sampling_parameters}
    status, answer = clients.post(server, f"/v2/models/{model}/generate", body)
    assert status == 200, answer


def wait_for(server: TritonServer, expected: dict[str, float], model: str = "smollm2") -> None:
    """Until these lines show these values; says which do not."""

    def shown() -> dict[str, float]:
        found = page(server, model)
        return {name: found[name] for name in expected}

    try:
        clients.wait_until(lambda: shown() == expected, timeout_s=5)
    except AssertionError:
        assert shown() == expected


@pytest.mark.slow
def test_every_metric_is_on_the_page_with_its_type_and_buckets(loaded: TritonServer) -> None:
    found = page(loaded)
    types = clients.metric_types(loaded)
    for metric in METRICS:
        assert types[metric.name] == metric.kind.value
        if isinstance(metric, HistogramMetric):
            bounds = [name for name in found if name.startswith(f"{metric.name}_bucket")]
            assert len(bounds) == len(metric.bounds or [1] * 15) + 1, metric.name
            assert found[f"{metric.name}_count"] == found[f"{metric.name}_sum"] == 0
        else:
            for value in metric.read:
                assert (f"{metric.name}{{{metric.label}={value}}}" if value else metric.name) in found
    # The server reads its load report from these; an idle engine says what it has before its first request.
    blocks = "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="
    assert [found[f"{blocks}{kind}}}"] for kind in ("tokens_per", "used", "max")] == [16, 0, 19_999]
    assert "vllm:request_prompt_tokens_bucket{le=50000}" in found


@pytest.mark.slow
def test_counts_are_exact(loaded: TritonServer) -> None:
    complete(loaded, max_tokens=10)
    complete(loaded, max_tokens=20, n=2, seed=1)
    complete(loaded, max_tokens=1)
    num_prompt, num_generated, num_sequences = 3 * len(PROMPT), 10 + 2 * 20 + 1, 4
    gaps = num_generated - num_sequences
    wait_for(
        loaded,
        {
            "vllm:prompt_tokens_total": num_prompt,
            "vllm:generation_tokens_total": num_generated,
            "vllm:request_success_total{finished_reason=length}": num_sequences,
            "vllm:request_success_total{finished_reason=stop}": 0,
            "octavo:request_finished_total{finished_reason=length}": num_sequences,
            "vllm:prefix_cache_queries_total": num_prompt,
            # The second and the third find all blocks but the last, of which one token must be computed.
            "vllm:prefix_cache_hits_total": 2 * 48,
            "vllm:num_preemptions_total": 0,
            "vllm:time_to_first_token_seconds_count": 3,
            "vllm:time_per_output_token_seconds_count": gaps,
            "octavo:time_per_output_token_seconds_count": gaps,
            "vllm:e2e_request_latency_seconds_count": 3,
            "vllm:request_queue_time_seconds_count": 3,
            "vllm:request_prefill_time_seconds_count": 3,
            "vllm:request_decode_time_seconds_count": 3,
            "vllm:request_prompt_tokens_count": 3,
            "vllm:request_prompt_tokens_sum": num_prompt,
            "vllm:request_prompt_tokens_bucket{le=50}": 0,
            "vllm:request_prompt_tokens_bucket{le=100}": 3,
            "vllm:request_generation_tokens_count": num_sequences,
            "vllm:request_generation_tokens_sum": num_generated,
            "vllm:request_generation_tokens_bucket{le=1}": 1,
            "vllm:request_generation_tokens_bucket{le=10}": 2,
            "vllm:request_params_n_sum": 4,
            "vllm:request_params_n_bucket{le=1}": 2,
            "octavo:engine_restarts_total": 0,
            "vllm:num_requests_running": 0,
            "vllm:num_requests_waiting": 0,
            "vllm:kv_cache_usage_perc": 0,
        },
    )
    found = page(loaded)
    parts = [found[f"octavo:request_{part}_time_seconds_sum"] for part in ("queue", "prefill", "decode")]
    assert 0 < sum(parts) <= found["octavo:e2e_request_latency_seconds_sum"] + 1e-6


@pytest.mark.slow
def test_running_and_cancelled_requests_show(loaded: TritonServer) -> None:
    body = {"text_input": PROMPT, "max_tokens": 40_000, "ignore_eos": True}
    with clients.http_stream(loaded, body) as events:
        next(events)
        clients.wait_until(lambda: page(loaded)["vllm:num_requests_running"] == 1)
        clients.wait_until(lambda: page(loaded)["vllm:gpu_cache_usage_perc"] > 0)
        used = "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=used}"
        clients.wait_until(lambda: page(loaded)[used] > 0)
    wait_for(loaded, {"vllm:num_requests_running": 0, "vllm:request_success_total{finished_reason=abort}": 1, used: 0})
    clients.wait_until(lambda: page(loaded)["vllm:e2e_request_latency_seconds_count"] == 1)


@pytest.mark.slow
def test_preemptions_are_counted_and_change_no_other_count(loaded: TritonServer) -> None:
    load_anew(loaded, "tiny")
    complete(loaded, "tiny", n=3, seed=1, max_tokens=40)
    clients.wait_until(lambda: page(loaded, "tiny")["vllm:num_preemptions_total"] > 0)
    expected = {
        "vllm:prompt_tokens_total": len(PROMPT),
        "vllm:generation_tokens_total": 3 * 40,
        "vllm:time_to_first_token_seconds_count": 1,
        "vllm:time_per_output_token_seconds_count": 3 * 39,
        "vllm:request_generation_tokens_count": 3,
    }
    wait_for(loaded, expected, "tiny")
    assert "vllm:request_prompt_tokens_bucket{le=100}" in page(loaded, "tiny")
    assert "vllm:request_prompt_tokens_bucket{le=200}" not in page(loaded, "tiny")
    assert page(loaded)["vllm:prompt_tokens_total"] == 0
    unload(loaded, "tiny")


@pytest.mark.slow
def test_a_model_that_comes_back_counts_from_zero_and_the_server_lives(loaded: TritonServer) -> None:
    for _ in range(2):
        complete(loaded, max_tokens=300)
        unload(loaded, "smollm2")
        load_anew(loaded, "smollm2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["silent", "disabled"])
def test_a_model_that_is_not_asked_to_report_has_no_lines(metrics_server: TritonServer, name: str) -> None:
    assert load(metrics_server, name) == (200, "")
    complete(metrics_server, name, max_tokens=2)
    assert not page(metrics_server, name)
    unload(metrics_server, name)


@pytest.mark.slow
def test_a_model_that_is_reloaded_in_place_goes_on_reporting(metrics_server: TritonServer) -> None:
    assert load(metrics_server, "reloaded") == (200, "")
    complete(metrics_server, "reloaded", max_tokens=3)
    wait_for(metrics_server, {"vllm:generation_tokens_total": 3}, "reloaded")
    (repository,) = metrics_server.options.model_repositories
    (repository / "reloaded/1/model.json").touch()
    # The new one is served while the old one ends.
    assert load(metrics_server, "reloaded") == (200, "")
    complete(metrics_server, "reloaded", max_tokens=5)
    clients.wait_until(lambda: num_processes(metrics_server) == (1, 1))
    clients.wait_until(lambda: page(metrics_server, "reloaded").get("vllm:generation_tokens_total") == 5)
    complete(metrics_server, "reloaded", max_tokens=20)
    wait_for(metrics_server, {"vllm:generation_tokens_total": 25, "octavo:engine_restarts_total": 0}, "reloaded")
    unload(metrics_server, "reloaded")
    clients.wait_until(lambda: num_processes(metrics_server) == (0, 0))


@pytest.mark.slow
def test_each_of_several_instances_has_lines_of_its_own(metrics_server: TritonServer) -> None:
    assert load(metrics_server, "pair") == (200, "")

    def both(name: str) -> list[float]:
        found = page(metrics_server, "pair")
        return [found.get(f"{name}{{instance=pair_0_{i}}}", -1) for i in range(2)]

    clients.wait_until(lambda: both("octavo:steps_total") == [0, 0])
    assert "octavo:steps_total" not in page(metrics_server, "pair")
    with ExitStack() as streams:
        # The server hands them to either instance.
        while min(both("vllm:num_requests_running")) < 1:
            body = {"text_input": PROMPT, "max_tokens": 40_000, "ignore_eos": True}
            next(streams.enter_context(clients.http_stream(metrics_server, body, "pair")))
            clients.wait_until(lambda: sum(both("vllm:num_requests_running")) >= 1)
    clients.wait_until(lambda: both("vllm:num_requests_running") == [0, 0])
    before = sum(both("vllm:generation_tokens_total"))
    for _ in range(4):
        complete(metrics_server, "pair", max_tokens=5)
    clients.wait_until(lambda: sum(both("vllm:generation_tokens_total")) == before + 20)
    unload(metrics_server, "pair")
    clients.wait_until(lambda: num_processes(metrics_server) == (0, 0))


@pytest.mark.slow
def test_several_instances_that_are_unloaded_with_much_to_tell_leave_the_server_alive(
    metrics_server: TritonServer,
) -> None:
    def num_tokens() -> float:
        return sum(value for name, value in page(metrics_server, "pair").items() if "generation_tokens_total" in name)

    assert load(metrics_server, "pair") == (200, "")
    with ThreadPoolExecutor(12) as askers:
        asked = [askers.submit(complete, metrics_server, "pair", max_tokens=1500) for _ in range(12)]
        # The server lets requests end before it takes one instance after the other.
        clients.wait_until(lambda: num_tokens() > 0)
        unload(metrics_server, "pair")
        for one in asked:
            one.result()
    clients.wait_until(lambda: num_processes(metrics_server) == (0, 0))
    assert not page(metrics_server, "pair")


@pytest.mark.slow
def test_a_server_without_metrics_serves_and_says_so_in_its_log(server_dir: Path, tmp_path: Path) -> None:
    add_fake_model(tmp_path, "blind", KIND_MODEL + REPORTING)
    with killed_afterwards(options_for(tmp_path, server_dir, extra=("--allow-metrics=false",))) as server:
        assert load(server, "blind") == (200, "")
        complete(server, "blind", max_tokens=2)
        assert "[vllm] Metrics not supported" in server.log_path.read_text()
        unload(server, "blind")
        clients.wait_until(lambda: num_processes(server) == (0, 0))
