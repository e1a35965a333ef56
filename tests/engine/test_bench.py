import hashlib
import json
import re

import pytest
from rich.console import Console

from octavo import bench, workloads
from octavo.bench import Repetition, Spread
from octavo.config import EngineConfig
from octavo.errors import InvalidRequest
from octavo.testing import FAKE_VOCAB_SIZE, create_fake_executor, make_fake_model
from octavo.workloads import Item, Workload

# SHA-256 of the JSON list of [token ids, output tokens] that the performance specification gives each workload.
DIGESTS = {
    "W1": "8ce331ac7787ee538e847c01253567a487e8f06a4e5cf3a8be5615baee371a77",
    "W2": "006ebc26f2051bfb9c2b59c549b0639763694ecfde6c06784e931bea515e58ab",
    "W3": "268ab5139c00731866b6ea31aa03d36ee08248a20468ae3de8df8e340c2bc50d",
    "W4": "40e077edb2dc37e162fe90fd9c65d297eb1c2d199d33f287b2926757364e8702",
}


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    return make_fake_model(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=4096)


@pytest.fixture
def config(long_model):
    return EngineConfig(
        model=str(long_model), executor="octavo.testing:create_fake_executor", max_num_batched_tokens=512
    )


@pytest.mark.parametrize("name", workloads.NAMES)
def test_workloads_are_those_of_the_specification(name):
    pairs = [(item.prompt_token_ids, item.num_output_tokens) for item in workloads.make(name).items]
    assert hashlib.sha256(json.dumps(pairs).encode()).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize("vocab_size", [18, FAKE_VOCAB_SIZE, 151936])
def test_another_vocabulary_keeps_the_lengths_and_bounds_the_ids(vocab_size):
    full, other = workloads.make("W2"), workloads.make("W2", vocab_size)
    assert [len(i.prompt_token_ids) for i in other.items] == [len(i.prompt_token_ids) for i in full.items]
    assert all(17 <= token_id < vocab_size for i in other.items for token_id in i.prompt_token_ids)
    assert (other == full) == (vocab_size >= 49152)


def test_unknown_workloads_and_impossible_vocabularies_are_refused():
    with pytest.raises(InvalidRequest, match=r"workload: .*W9.*W1, W2"):
        workloads.make("W9")
    with pytest.raises(InvalidRequest, match="vocab_size"):
        workloads.make("W1", 17)


def test_every_repetition_starts_with_an_empty_prefix_cache_and_shares_within_itself(config):
    result = bench.run(config, ["W3"], repeat=2)[0]
    # The first prompt finds nothing; the 31 others may find the 1,024 tokens that all share, and no more.
    assert 0 < result.prefix_hit_rate <= 31 * 1024 / (32 * 1056)
    assert bench.run(config, ["W1"], repeat=2)[0].prefix_hit_rate == 0


def test_kv_waste_is_sampled_after_every_step(config):
    seen = []

    def create(*args):
        executor = create_fake_executor(*args)
        seen.append(executor)
        return executor

    engine = bench.Engine(bench.Engine.from_config(config).config, create(config, None, lambda phase, fraction: None))
    workload = Workload("T", "tiny", (Item([20] * 17, 15),))
    repetition = bench.run_once(engine, workload, salt="0")
    assert seen[0].num_steps == 15
    # After the first of 15 steps 17 tokens are in two blocks of 16; after the last one nothing runs any more.
    assert repetition.kv_waste == pytest.approx([(32 - held) / 32 for held in range(17, 31)])
    assert repetition.num_output_tokens == 15
    assert len(repetition.ttft_s) == 1 and len(repetition.itl_s) == 14
    assert sum(repetition.itl_s) + repetition.ttft_s[0] <= repetition.wall_s


def test_a_workload_longer_than_the_context_is_refused_instead_of_cut(config, fake_model):
    short = EngineConfig(model=str(fake_model), executor=config.executor)
    with pytest.raises(InvalidRequest, match=r"W4.*max_model_len = 1024; it needs 2049"):
        bench.run(short, ["W1", "W4"], repeat=1)
    with pytest.raises(InvalidRequest, match="repeat"):
        bench.run(short, ["W1"], repeat=0)


def test_repetitions_take_turns_and_progress_is_told(config):
    told = []
    results = bench.run(config, ["W1", "W4"], 2, lambda stage, done, total: told.append((stage, done, total)))
    assert [stage.split()[0] for stage, _, _ in told] == ["loading", "W1", "W4", "W1", "W4", "done"]
    assert [done for _, done, _ in told] == [0, 1, 2, 3, 4, 5] and {total for _, _, total in told} == {5}
    assert [(r.name, r.repeat, r.num_output_tokens) for r in results] == [("W1", 2, 128), ("W4", 2, 1)]
    assert results[1].itl_p50_ms is None
    # 2,048 tokens in steps of 512 fill whole blocks.
    assert results[1].kv_waste_max == 0


def test_figures_are_medians_with_their_spread():
    workload = workloads.make("W1").clipped(1, 10, 4)
    gaps = [[0.1, 0.1, 0.3], [0.2, 0.2, 0.2], [0.4, 0.4, 0.6]]
    runs = [
        Repetition(wall_s=wall_s, num_requests=1, num_prompt_tokens=10, num_output_tokens=4, ttft_s=[0.5], itl_s=itl_s)
        for wall_s, itl_s in zip((1.0, 2.0, 4.0), gaps, strict=True)
    ]
    result = bench.summarize(workload, runs)
    assert result.output_tok_s == Spread(2.0, 1.0, 4.0)
    assert result.total_tok_s == Spread(7.0, 3.5, 14.0)
    assert result.ttft_ms == Spread(500, 500, 500)
    assert result.itl_p50_ms == Spread(200, 100, 400)
    assert result.itl_p99_ms == Spread(300, 200, 600)
    assert result.kv_waste_mean is None and result.prefix_hit_rate is None


def test_json_names_machine_versions_and_model_but_no_path(config, long_model):
    results = bench.run(config, ["W1"], repeat=1)
    report = json.loads(bench.to_json(results, config))
    assert report["results"][0]["output_tok_s"].keys() == {"median", "low", "high"}
    assert report["engine"]["model"] == long_model.name
    assert str(long_model) not in json.dumps(report)
    assert {"python", "torch"} <= report["versions"].keys()
    assert report["cpu"] and report["num_cores"] and report["date"]


def test_the_table_has_a_row_a_workload(config):
    console = Console(width=160)
    with console.capture() as captured:
        console.print(bench.render(bench.run(config, ["W1", "W4"], repeat=1)))
    text = captured.get()
    assert re.search(r"W1 .*128", text) and re.search(r"W4 .*2,048", text)
