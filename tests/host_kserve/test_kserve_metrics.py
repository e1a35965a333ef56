"""The page that prometheus-client makes of the engines' snapshots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import octavo
import octavo.testing
from octavo_kserve.metrics import EngineCollector, cumulative
from octavo_kserve.served_model import Models, ServedModel


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[octavo.EngineStats]:
    """A real snapshot, after one request of 5 tokens."""
    model = octavo.testing.make_fake_model(tmp_path_factory.mktemp("model") / "fake")
    engine = octavo.AsyncEngine(octavo.EngineConfig(model=str(model), executor="octavo.testing:create_fake_executor"))
    engine.wait_ready(60)
    list(engine.submit("abc", octavo.SamplingParams(max_tokens=5)))
    yield engine.stats()
    engine.shutdown()


def page(**models: octavo.EngineStats) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples of the page by name and labels."""
    registry, served = CollectorRegistry(), Models()
    for name, stats in models.items():
        engine: Any = SimpleNamespace(
            stats=lambda stats=stats: stats, config=SimpleNamespace(disable_log_stats=name == "silent")
        )
        served.add(ServedModel(name, engine, 0))
    registry.register(EngineCollector(served))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.slow
def test_every_metric_of_the_table_is_on_the_page_with_its_type(stats: octavo.EngineStats) -> None:
    found = {name for name, _ in page(m=stats)}
    for metric in octavo.METRICS:
        name = f"{metric.name}_bucket" if metric.kind is octavo.MetricKind.HISTOGRAM else metric.name
        assert name in found


@pytest.mark.slow
def test_values_are_those_of_the_snapshot_for_each_model(stats: octavo.EngineStats) -> None:
    samples = page(a=stats, b=replace(stats, generation_tokens_total=77), silent=stats)
    name = "vllm:generation_tokens_total"
    assert samples[name, (("model_name", "a"),)] == 5
    assert samples[name, (("model_name", "b"),)] == 77
    assert not any(("model_name", "silent") in labels for _, labels in samples)
    assert samples["vllm:request_success_total", (("finished_reason", "length"), ("model_name", "a"))] == 1
    sizes = ("block_size", str(stats.block_size)), ("model_name", "a"), ("num_gpu_blocks", str(stats.num_blocks))
    assert samples["vllm:cache_config_info", sizes] == 1
    assert samples["vllm:request_prompt_tokens_sum", (("model_name", "a"),)] == 3


def test_buckets_count_what_is_at_most_their_bound() -> None:
    histogram = octavo.Histogram((0.5, 1.0), (2, 0, 3), (0.4, 0.0, 9.0))
    assert cumulative(histogram) == [("0.5", 2.0), ("1.0", 2.0), ("+Inf", 5.0)]
