"""From a model on a device to a runner that is ready: tables, the memory plan, the KV cache, the first graphs."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

from octavo.config import EngineConfig
from octavo.models.decoder import Decoder
from octavo.runner.device import Device
from octavo.runner.device_runner import DeviceRunner
from octavo.runner.device_tables import DeviceTables
from octavo.runner.graph_ladder import ladder_sizes
from octavo.runner.input_batch import InputBatch
from octavo.runner.kv_cache import KVCacheLayout
from octavo.runner.memory_plan import MemoryUse, allocate_shrinking, estimated_graph_bytes, plan_memory

logger = logging.getLogger(__name__)

# The null block, and one for the rest of the tensor not to be empty.
_PROBE_BLOCKS = 2


def start_on_device(
    model: Decoder,
    layout: KVCacheLayout,
    config: EngineConfig,
    device: Device,
    on_progress: Callable[[str, float], None],
) -> DeviceRunner:
    """Measures what the largest steps take, gives the rest of the memory to the KV cache, and warms up.

    `config` is resolved, `model` on the device. Raises ModelLoadError with the numbers when memory does not suffice.
    """
    assert config.max_num_seqs and config.max_model_len and config.max_num_batched_tokens
    device.synchronize()  # weights may have come by other streams
    weights = device.memory.allocated_bytes
    sizes = config.max_num_seqs, config.max_model_len, config.block_size
    tables = DeviceTables.allocate(model.spec, *sizes, device.torch_device)
    batch = InputBatch(*sizes, model.spec.vocab_size)

    def runner_on(num_blocks: int) -> tuple[DeviceRunner, int]:
        kv_caches, num_retries = allocate_shrinking(layout, num_blocks, device.torch_device)
        assert config.max_num_batched_tokens
        return DeviceRunner(model, kv_caches, batch, device, tables, config.max_num_batched_tokens), num_retries

    on_progress("memory plan", 0.0)
    probe, _ = runner_on(_PROBE_BLOCKS)
    use = _measured(probe, device, weights, len(ladder_sizes(config.max_num_seqs)))
    del probe
    # It is part of a cycle: what it holds on the device would be there beside the KV cache, for a while.
    gc.collect()
    plan = plan_memory(use, layout, config)
    for line in plan.lines(config.max_model_len):
        logger.info("%s", line)
    on_progress("memory plan", 1.0)
    on_progress("warm up", 0.0)
    runner, num_retries = runner_on(plan.num_blocks)
    runner.num_start_fallbacks = num_retries
    runner.warm_up()
    on_progress("warm up", 1.0)
    return runner


def _measured(probe: DeviceRunner, device: Device, weights: int, num_graphs: int) -> MemoryUse:
    """weights: bytes. `probe` has been made, and nothing was launched since."""
    # Twice: the first time compiles, and lets libraries take workspaces that they keep.
    for work in (probe.largest_step, probe.largest_decode):
        device.launch(work())
        device.synchronize()
    # Only now: with those workspaces, and with what a step leaves behind for the next one.
    held = device.memory.allocated_bytes - weights
    return MemoryUse(
        total=device.memory.total_bytes,
        other_processes=device.memory.total_bytes - device.memory.free_bytes - device.memory.allocated_bytes,
        weights=weights,
        activations=device.peak_bytes(probe.largest_step()),
        graphs=estimated_graph_bytes(device.peak_bytes(probe.largest_decode()), num_graphs),
        tables=held,
    )
