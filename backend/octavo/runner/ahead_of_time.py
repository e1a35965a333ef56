"""Every kernel that an engine on a GPU will launch, compiled where no GPU need be: the runner runs on mere shapes.

The runner is the real one; its device does nothing but let its work launch. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig, resolve
from octavo.core.step import NewRow, SchedulerOutput
from octavo.errors import ModelLoadError
from octavo.kernels import language
from octavo.kernels.ahead_of_time import compiling
from octavo.models import shape_model
from octavo.models.config import Quantisation
from octavo.models.decoder import Decoder
from octavo.runner import dtype_of, layout_of
from octavo.runner.device import DeviceMemory
from octavo.runner.device_runner import DeviceRunner
from octavo.runner.device_start import start_on_device
from octavo.sampling_params import SamplingParams

__all__ = ["compile_kernels", "shape_runner"]

# More than any model needs: nothing is allocated.
_MEMORY_BYTES = 1 << 50


class ShapeDevice:
    """A Device on which tensors are only shapes. Results that "arrive" are zeros."""

    torch_device = torch.device("meta")
    memory = DeviceMemory(free_bytes=_MEMORY_BYTES, total_bytes=_MEMORY_BYTES, allocated_bytes=0)

    def pinned(self, num_words: int) -> Tensor:
        """Host memory; see Device for this and what follows."""
        return torch.zeros(num_words, dtype=torch.int64)

    def launch(self, work: Callable[[], None]) -> None:
        """Does it at once."""
        with torch.inference_mode():
            work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work` has been launched, so that its kernels are compiled: a replay has nothing to do."""
        return lambda: None

    def fetch(self, source: Tensor, target: Tensor) -> ShapeDevice:
        """Nothing is copied."""
        return self

    def wait(self) -> None:
        """As an Arrival: returns at once."""

    def synchronize(self) -> None:
        """Nothing is on its way."""

    def peak_bytes(self, work: Callable[[], None]) -> int:
        """Launches it; shapes take no memory."""
        self.launch(work)
        return 0


def compile_kernels(
    config: EngineConfig, checkpoint: Checkpoint, capability: int, on_kernel: Callable[[str], None]
) -> None:
    """Compiles into cache_folder.py's folder what an engine with this `config` and model needs on a GPU.

    capability: the GPU's compute capability times ten, 90 for Hopper. on_kernel(name) is told of every compiled kernel.
    What `config` says of dtype, quantisation, block_size and max_num_seqs makes other kernels. Reads no weights. Raises
    ModelLoadError for a model that cannot be served.
    """
    if not language.HAS_TRITON:
        raise ModelLoadError("compiling kernels needs the package triton: install octavo[triton-language]")
    if checkpoint.is_encoder:
        raise ModelLoadError("an encoder has no kernels to compile yet: it runs on a CPU")
    config = resolve(replace(config, device="cuda"), checkpoint)
    with compiling(capability, on_kernel):
        runner = shape_runner(config, checkpoint)
        while runner.make_ready():
            pass
        _run_mixed_steps(runner, config)


def shape_runner(config: EngineConfig, checkpoint: Checkpoint) -> DeviceRunner:
    """A runner for a resolved `config` whose device has no memory and computes nothing; to be used in `compiling`."""
    dtype = dtype_of(config, checkpoint, torch.device("cuda"))
    weights = "fp8" if config.quantization == "fp8" else None
    model = shape_model(checkpoint, dtype, Quantisation(weights, config.kv_cache_dtype == "fp8"))
    assert isinstance(model, Decoder)
    layout = layout_of(model.spec, config, dtype)
    return start_on_device(model, layout, config, ShapeDevice(), lambda phase, fraction: None)


def _run_mixed_steps(runner: DeviceRunner, config: EngineConfig) -> None:
    """Prompts beside any power of two of rows that have one token: kernels are compiled for the next power of two."""
    assert config.max_num_seqs is not None and config.max_model_len is not None
    assert config.max_num_batched_tokens is not None
    for num_decode_rows in _powers_of_two(min(config.max_num_seqs, config.max_num_batched_tokens - 1) - 1):
        counts = [1] * num_decode_rows + [min(2, config.max_model_len - 1)]
        new_rows = [_new_row(row, count, config.block_size) for row, count in enumerate(counts)]
        rows = list(range(len(counts)))
        runner.execute(SchedulerOutput(0, [], new_rows, [], [], rows, [0] * len(rows), counts))
        runner.execute(SchedulerOutput(0, rows, [], [], [], [], [], []))


def _powers_of_two(limit: int) -> Iterator[int]:
    """0, 1, 2, 4, ... and `limit`."""
    yield 0
    power = 1
    while power < limit:
        yield power
        power *= 2
    if limit > 0:
        yield limit


def _new_row(row: int, num_tokens: int, block_size: int) -> NewRow:
    null_blocks = [0] * -(-num_tokens // block_size)
    return NewRow(row, [0] * num_tokens, num_tokens, null_blocks, SamplingParams(temperature=0), 0, (), [], False)
