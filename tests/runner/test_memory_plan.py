import logging
import re

import pytest
import torch

from octavo.config import EngineConfig
from octavo.errors import ModelLoadError
from octavo.runner.kv_cache import KVCacheLayout
from octavo.runner.memory_plan import MemoryUse, allocate_shrinking, estimated_graph_bytes, plan_memory

GIB = 1 << 30
# Llama 3.1 8B: 2 MiB a block of 16 tokens.
LAYOUT = KVCacheLayout(num_layers=32, num_kv_heads=8, head_dim=128, block_size=16, dtype=torch.bfloat16)
SMALL = KVCacheLayout(num_layers=2, num_kv_heads=1, head_dim=8, block_size=4, dtype=torch.float32)
CPU = torch.device("cpu")


def use(**sizes):
    parts = {"total": 140, "other_processes": 1, "weights": 15, "activations": 1, "graphs": 0.5, "tables": 0.5}
    return MemoryUse(**{name: int(size * GIB) for name, size in (parts | sizes).items()})


def config(**settings):
    return EngineConfig(**({"max_model_len": 32768, "max_num_seqs": 256} | settings))


def test_the_cache_gets_what_the_share_of_the_device_leaves():
    plan = plan_memory(use(), LAYOUT, config(gpu_memory_utilization=0.5))
    assert plan.kv_cache == (70 - 17) * GIB
    assert plan.num_tokens == (53 * 512 - 1) * 16


def test_what_others_hold_counts_only_where_it_cuts_the_share():
    at = config(gpu_memory_utilization=0.5)
    assert plan_memory(use(other_processes=60), LAYOUT, at).num_blocks == plan_memory(use(), LAYOUT, at).num_blocks
    cut = plan_memory(use(other_processes=90), LAYOUT, at)
    assert 0.96 * 33 * GIB < cut.kv_cache < 33 * GIB


def test_narrower_numbers_make_more_blocks():
    fp8 = KVCacheLayout(32, 8, 128, 16, torch.float8_e4m3fn)
    assert plan_memory(use(), fp8, config()).num_tokens >= 2 * plan_memory(use(), LAYOUT, config()).num_tokens


def test_a_small_model_gets_no_more_blocks_than_its_sequences_and_their_prefixes_can_use():
    sizes = {"max_model_len": 64, "max_num_seqs": 8}
    assert plan_memory(use(), SMALL, config(**sizes)).num_blocks == 4 * 8 * 16 + 1
    assert plan_memory(use(), SMALL, config(**sizes, kv_cache_memory_bytes=GIB)).kv_cache == GIB


def test_a_size_that_is_set_is_taken_whatever_the_share():
    assert plan_memory(use(), LAYOUT, config(kv_cache_memory_bytes=120 * GIB)).kv_cache == 120 * GIB
    both = config(num_gpu_blocks_override=70, kv_cache_memory_bytes=120 * GIB, gpu_memory_utilization=0.01)
    assert plan_memory(use(), LAYOUT, both).num_blocks == 70


@pytest.mark.parametrize("asked", [{"kv_cache_memory_bytes": 123 * GIB}, {"num_gpu_blocks_override": 123 * 512}])
def test_a_size_that_is_not_there_is_refused_with_the_numbers(asked):
    with pytest.raises(ModelLoadError, match=next(iter(asked)) + r" asks for 123\.0 GiB .* 122\.0 GiB are left: lower"):
        plan_memory(use(), LAYOUT, config(**asked))


def test_less_than_one_sequence_is_refused_with_what_would_fit():
    # One sequence takes 4 GiB and the null block.
    tight = config(gpu_memory_utilization=21 / 140)
    with pytest.raises(ModelLoadError, match=r"raise gpu_memory_utilization.*max_model_len to at most (\d+)") as caught:
        plan_memory(use(), LAYOUT, tight)
    assert "weights 15.0 GiB" in str(caught.value)
    longest = int(re.search(r"at most (\d+)", str(caught.value))[1])
    assert plan_memory(use(), LAYOUT, config(gpu_memory_utilization=21 / 140, max_model_len=longest)).num_blocks
    with pytest.raises(ModelLoadError):
        plan_memory(use(), LAYOUT, config(gpu_memory_utilization=21 / 140, max_model_len=longest + 1))


def test_a_model_that_does_not_fit_at_all_says_so():
    with pytest.raises(ModelLoadError, match=r"there are 0: raise gpu_memory_utilization .*not one block fits"):
        plan_memory(use(), LAYOUT, config(gpu_memory_utilization=0.1))
    with pytest.raises(ModelLoadError, match="free memory that other processes hold"):
        plan_memory(use(other_processes=125), LAYOUT, config())


def test_the_log_has_a_line_a_part_and_the_parts_add_up():
    plan = plan_memory(use(), LAYOUT, config())
    lines = plan.lines(32768)
    sizes = [float(re.search(r"(\d+\.\d) GiB", line)[1]) for line in lines]
    assert sizes[0] == pytest.approx(sum(sizes[1:]), abs=0.4)
    assert f"KV cache 109.0 GiB = {plan.num_tokens:,} tokens (27.2 x max_model_len)" in lines


def test_graphs_are_estimated_by_their_number_and_the_largest():
    assert estimated_graph_bytes(10 << 20, 0) == 0
    assert estimated_graph_bytes(10 << 20, 20) > estimated_graph_bytes(10 << 20, 10) > 10 << 20


class FailingLayout:
    """Has memory for `room` blocks of `SMALL`."""

    def __init__(self, room):
        self.room = room
        self.asked = []

    def allocate(self, num_blocks, device):
        self.asked.append(num_blocks)
        return SMALL.allocate(num_blocks if num_blocks <= self.room else 1 << 50, device)


def test_out_of_memory_makes_the_cache_smaller_and_says_so(caplog):
    layout = FailingLayout(910)
    with caplog.at_level(logging.WARNING):
        kv_caches, num_retries = allocate_shrinking(layout, 1000, CPU)
    assert layout.asked == [1000, 950, 902]
    assert [len(kv_cache) for kv_cache in kv_caches] == [902, 902]
    assert num_retries == len(caplog.messages) == 2


def test_enough_memory_is_taken_at_once():
    kv_caches, num_retries = allocate_shrinking(SMALL, 100, CPU)
    assert (len(kv_caches[0]), num_retries) == (100, 0)


@pytest.mark.parametrize(("num_blocks", "tries"), [(1000, 5), (3, 2), (2, 1)])
def test_after_a_few_tries_it_is_an_error(num_blocks, tries):
    layout = FailingLayout(0)
    with pytest.raises(ModelLoadError, match="lower gpu_memory_utilization"):
        allocate_shrinking(layout, num_blocks, CPU)
    assert len(layout.asked) == tries


def test_another_error_of_the_device_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def lost(*args, **kwargs):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch, "empty", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        SMALL.allocate(2, torch.device("cuda"))
