"""The GPU's runner on a device that does nothing: what is left of a step is the host's part of it.

That is scheduling, staging, reading results and updating, but neither the launches nor the driver's work.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import scheduler
import torch
from torch import Tensor

from octavo.config import EngineConfig
from octavo.layers.rope import RopeSpec
from octavo.models.config import DecoderSpec
from octavo.runner.device import DeviceMemory
from octavo.runner.device_runner import DeviceRunner
from octavo.runner.device_tables import DeviceTables
from octavo.runner.input_batch import InputBatch

# Llama-3.1-8B's shapes, as far as the host sees them.
SPEC = DecoderSpec(4096, 14336, 32, 8, 128, 128256, 131072, 1e-5, RopeSpec(), (None,) * 32, False)


class NullDevice:
    """Takes work and forgets it; every row samples token 0."""

    torch_device = torch.device("cpu")
    memory = DeviceMemory(free_bytes=0, total_bytes=0, allocated_bytes=0)

    def pinned(self, num_words: int) -> Tensor:
        return torch.zeros(num_words, dtype=torch.int64)

    def launch(self, work: Callable[[], None]) -> None:
        pass

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    def fetch(self, source: Tensor, target: Tensor) -> NullDevice:
        return self

    def wait(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def peak_bytes(self, work: Callable[[], None]) -> int:
        return 0


def null_device_runner(num_blocks: int, config: EngineConfig) -> DeviceRunner:
    """With a graph for every number of rows, and a KV cache of `num_blocks` with nothing in it."""
    assert config.max_num_seqs and config.max_model_len and config.max_num_batched_tokens
    sizes = config.max_num_seqs, config.max_model_len, config.block_size
    tables = DeviceTables.allocate(SPEC, *sizes, NullDevice.torch_device)
    kv_caches = [torch.empty(num_blocks, 2, SPEC.num_kv_heads, config.block_size, 0)]
    runner = DeviceRunner(
        SimpleNamespace(spec=SPEC),  # type: ignore[arg-type]
        kv_caches,
        InputBatch(*sizes, SPEC.vocab_size),
        NullDevice(),
        tables,
        config.max_num_batched_tokens,
    )
    while runner.make_ready():
        pass
    return runner


if __name__ == "__main__":
    with torch.inference_mode():
        scheduler.main(__doc__, null_device_runner)
