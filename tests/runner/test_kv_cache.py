import pytest
import torch

from octavo.config import EngineConfig
from octavo.errors import ModelLoadError
from octavo.runner.kv_cache import KVCacheLayout, available_memory_bytes, copy_blocks, default_size_bytes

LAYOUT = KVCacheLayout(num_layers=2, num_kv_heads=3, head_dim=8, block_size=16, dtype=torch.bfloat16)
BLOCK_BYTES = 2 * 2 * 3 * 8 * 16 * 2


def config(**settings):
    return EngineConfig(**({"max_model_len": 100, "max_num_seqs": 4} | settings))


def test_a_block_is_keys_and_values_of_all_layers():
    assert LAYOUT.block_bytes == BLOCK_BYTES


def test_the_override_is_taken_as_it_is():
    assert LAYOUT.num_blocks(config(num_gpu_blocks_override=3)) == 3
    assert LAYOUT.num_blocks(config(num_gpu_blocks_override=99999, kv_cache_memory_bytes=1)) == 99999


def test_as_many_blocks_as_the_memory_holds():
    assert LAYOUT.num_blocks(config(kv_cache_memory_bytes=20 * BLOCK_BYTES + 1)) == 20


def test_never_more_blocks_than_full_sequences_and_the_null_block_need():
    assert LAYOUT.num_blocks(config(kv_cache_memory_bytes=10**9)) == 4 * 7 + 1
    assert LAYOUT.num_blocks(config()) == 4 * 7 + 1


def test_less_than_one_sequence_is_refused_with_both_numbers():
    assert LAYOUT.num_blocks(config(kv_cache_memory_bytes=8 * BLOCK_BYTES)) == 8
    with pytest.raises(ModelLoadError, match=rf"needs {8 * BLOCK_BYTES} bytes .* there are {8 * BLOCK_BYTES - 1}"):
        LAYOUT.num_blocks(config(kv_cache_memory_bytes=8 * BLOCK_BYTES - 1))


def test_the_default_is_a_quarter_of_what_is_available_up_to_two_gib():
    assert default_size_bytes(4 << 30) == 1 << 30
    assert default_size_bytes(64 << 30) == 2 << 30


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1000 * 1024),
        ({"memory.max": "max\n", "memory.current": "5\n"}, 1000 * 1024),
        ({"memory.max": "70000\n", "memory.current": "500\n"}, 69500),
        ({"memory.max": "100\n", "memory.current": "500\n"}, 0),
        ({"memory/memory.limit_in_bytes": "9000\n", "memory/memory.usage_in_bytes": "1000\n"}, 8000),
    ],
    ids=["machine", "no limit", "v2", "exhausted", "v1"],
)
def test_available_memory_respects_a_containers_limit(tmp_path, files, expected):
    (tmp_path / "memory").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 2000 kB\nMemAvailable: 1000 kB\nHugePages_Total: 0\n")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert available_memory_bytes(tmp_path / "meminfo", tmp_path) == expected


def test_tensors_have_the_layout_and_untouched_memory_is_not_committed():
    def resident_bytes():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    before = resident_bytes()
    kv_caches = LAYOUT.allocate(100_000, torch.device("cpu"))
    assert [kv_cache.shape for kv_cache in kv_caches] == [(100_000, 2, 3, 16, 8)] * 2
    assert kv_caches[0].dtype == torch.bfloat16
    assert resident_bytes() - before < 100_000 * BLOCK_BYTES / 10


def test_memory_that_is_not_there_is_an_error_that_says_so():
    with pytest.raises(ModelLoadError, match="no memory for"):
        LAYOUT.allocate(1 << 40, torch.device("cpu"))


def test_copies_are_made_in_the_order_given_in_every_layer():
    kv_caches = LAYOUT.allocate(4, torch.device("cpu"))
    for kv_cache in kv_caches:
        kv_cache.copy_(torch.arange(4).view(4, 1, 1, 1, 1).expand_as(kv_cache))
    copy_blocks(kv_caches, [(1, 2), (2, 3), (0, 1)])
    for kv_cache in kv_caches:
        assert kv_cache[:, 0, 0, 0, 0].tolist() == [0, 0, 1, 1]
        assert (kv_cache == kv_cache[:, :1, :1, :1, :1]).all()
