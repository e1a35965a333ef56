"""A Llama-3.1-8B-shaped model of random numbers on the device, and an engine around it. No files, no tokenizer.

Without a GPU a tiny one on the CPU takes its place. Knows nothing of what is measured.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from math import nan
from pathlib import Path
from time import perf_counter
from typing import Any

import bare_octavo  # noqa: F401  before everything that imports octavo
import torch
from gpu_shapes import DRY_SETTINGS, LLAMA_8B, SETTINGS, TINY
from gpu_timing import Bench, Row
from torch import Tensor

from octavo.checkpoint import Checkpoint
from octavo.config import EngineConfig, resolve
from octavo.engine import Engine
from octavo.models.config import DecoderSpec
from octavo.models.llama import LlamaForCausalLM
from octavo.models.weights import ShapeSource
from octavo.runner import create_executor_for

DTYPE = torch.bfloat16


class RandomWeights(ShapeSource):
    """Every tensor is made when it is asked for. `shapes` are those that were, by name.

    Rows of unit length keep activations near one, and so finite.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(DTYPE)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._device = device

    def take(self, name: str, *shape: int) -> Tensor:
        """bf16 on the device: normal numbers, and ones for a norm's weights."""
        self.shapes[name] = shape
        tensor = torch.empty(shape, dtype=DTYPE, device=self._device)
        return tensor.fill_(1.0) if len(shape) == 1 else tensor.normal_(std=shape[-1] ** -0.5)


def model_config(is_dry: bool) -> dict[str, Any]:
    """The config.json."""
    return TINY if is_dry else LLAMA_8B


def model_spec(is_dry: bool) -> DecoderSpec:
    return LlamaForCausalLM.read_spec(model_config(is_dry))


def random_model(bench: Bench) -> LlamaForCausalLM:
    return LlamaForCausalLM(model_spec(bench.is_dry), RandomWeights(bench.device))


def tensor_shapes(is_dry: bool) -> dict[str, tuple[int, ...]]:
    """Of all weights, by the names of a checkpoint, in the order in which the model asks for them."""
    weights = RandomWeights(torch.device("meta"))
    LlamaForCausalLM(model_spec(is_dry), weights)
    return weights.shapes


def engine_config(bench: Bench, **changes: object) -> EngineConfig:
    """Resolved. What is not set here is as octavo chooses it."""
    settings = (DRY_SETTINGS if bench.is_dry else SETTINGS) | {"device": bench.device.type} | changes
    checkpoint = Checkpoint(Path("random"), model_config(bench.is_dry), {}, ())
    return resolve(EngineConfig(**settings), checkpoint)


@contextmanager
def random_engine(bench: Bench, **changes: object) -> Iterator[tuple[Engine, Row]]:
    """An engine that has captured every graph, and a row on how it came to be. Memory is free when nobody holds it.

    changes: settings, see `engine_config`.
    """
    free_memory(bench)
    with stream_kept(bench):
        begin = perf_counter()
        config = engine_config(bench, **changes)
        engine = Engine(config, create_executor_for(random_model(bench), config, bench.device, DTYPE))
        ready = perf_counter()
        try:
            while engine.make_ready():
                pass
            times = {"start_s": ready - begin, "rest_of_graphs_s": perf_counter() - ready}
            row = {"what": "engine"} | (dict.fromkeys(times, nan) if bench.is_dry else times)
            row["kv_tokens"] = (engine.num_blocks - 1) * config.block_size
            row["fallbacks"] = engine.stats().fallbacks_total
            # As the engine's own process does: what lives for ever is not looked at again.
            gc.collect()
            gc.freeze()
            yield engine, row
        finally:
            engine.shutdown()
            gc.unfreeze()


@contextmanager
def stream_kept(bench: Bench) -> Iterator[None]:
    """An engine's stream becomes this thread's current one: until here."""
    stream = None if bench.is_dry else torch.cuda.current_stream()
    try:
        yield
    finally:
        if stream is not None:
            torch.cuda.set_stream(stream)


def free_memory(bench: Bench) -> None:
    """What nobody holds any more goes back to the device."""
    gc.collect()
    if not bench.is_dry:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
