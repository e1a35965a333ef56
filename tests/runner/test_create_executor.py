import dataclasses

import pytest
import torch

from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig, resolve
from octavo.engine import Engine
from octavo.errors import ModelLoadError
from octavo.metrics import METRICS
from octavo.runner import create_executor, dtype_of, has_native_bfloat16

NATIVE = torch.bfloat16 if has_native_bfloat16() else torch.float32


def with_config(checkpoint, **keys):
    plain = {key: value for key, value in checkpoint.config.items() if key not in ("dtype", "torch_dtype")}
    return dataclasses.replace(checkpoint, config=plain | keys)


@pytest.mark.parametrize(
    ("asked", "keys", "expected"),
    [
        ("auto", {}, NATIVE),
        ("auto", {"torch_dtype": None}, NATIVE),
        ("auto", {"dtype": "float32"}, torch.float32),
        ("auto", {"torch_dtype": "bfloat16"}, NATIVE),
        ("auto", {"torch_dtype": "float16"}, torch.float32),
        ("bfloat16", {"dtype": "float32"}, torch.bfloat16),
        ("float16", {}, torch.float16),
    ],
)
def test_the_dtype_is_the_one_asked_for_or_the_checkpoints_own(tiny_llama, asked, keys, expected):
    checkpoint = with_config(open_checkpoint(tiny_llama[0]), **keys)
    assert dtype_of(EngineConfig(dtype=asked), checkpoint, torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("named", "expected"), [("float16", torch.float16), ("bfloat16", torch.bfloat16), ("float32", torch.bfloat16)]
)
def test_a_gpu_computes_in_16_bits_unless_asked_for_more(tiny_llama, named, expected):
    checkpoint = with_config(open_checkpoint(tiny_llama[0]), dtype=named)
    gpu = torch.device("cuda", 0)
    assert dtype_of(EngineConfig(), checkpoint, gpu) == expected
    assert dtype_of(EngineConfig(dtype="float32"), checkpoint, gpu) == torch.float32


def test_a_dtype_that_nobody_knows_is_refused_by_name(tiny_llama):
    checkpoint = with_config(open_checkpoint(tiny_llama[0]), dtype="float8_e4m3fn")
    with pytest.raises(ModelLoadError, match="float8_e4m3fn"):
        dtype_of(EngineConfig(), checkpoint, torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_by_name(make_runner):
    with pytest.raises(ModelLoadError, match="'cuda:1' is not there: torch sees 0 GPUs"):
        make_runner(device="cuda:1")


def test_a_cache_too_small_is_refused_before_the_weights_are_read(tiny_llama):
    checkpoint = open_checkpoint(tiny_llama[0])
    config = resolve(EngineConfig(kv_cache_memory_bytes=1000), checkpoint)
    phases = []
    with pytest.raises(ModelLoadError, match="max_model_len 256"):
        create_executor(config, checkpoint, lambda phase, fraction: phases.append(phase))
    assert phases == []


def test_loading_reports_progress_and_leaves_all_rows_free(tiny_llama):
    checkpoint = open_checkpoint(tiny_llama[0])
    config = resolve(EngineConfig(max_num_seqs=2, num_threads=1, num_gpu_blocks_override=9), checkpoint)
    seen = []
    executor = create_executor(config, checkpoint, lambda phase, fraction: seen.append((phase, fraction)))
    assert seen[-1] == ("warm up", 1.0)
    assert len({phase for phase, _ in seen}) > 1
    assert executor.num_blocks == 9
    assert executor._batch.new_rows == [None, None]
    executor.shutdown()


def test_threads_are_those_asked_for_or_those_of_the_process(make_runner, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5, 8})
    try:
        make_runner(num_threads=None)
        assert torch.get_num_threads() == 3
        make_runner(num_threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_every_phase_of_start_up_is_exported(tiny_llama):
    engine = Engine.from_config(EngineConfig(model=str(tiny_llama[0]), num_threads=1, num_gpu_blocks_override=9))
    try:
        exported = next(metric for metric in METRICS if metric.name == "octavo:startup_seconds")
        stats = engine.stats()
        assert {phase: read(stats) for phase, read in exported.read.items() if read(stats)} == stats.startup_s
        assert set(stats.startup_s) >= {"import", "loading weights", "warm up"}
    finally:
        engine.shutdown()
