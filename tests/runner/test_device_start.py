"""How a runner on a device starts: what is measured, with what, and what is left of it afterwards."""

import dataclasses
import gc
import weakref
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("triton")

from kernels.triton_support import interpreted
from runner.fake_device import FakeDevice

from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig, resolve
from octavo.models import load_model
from octavo.runner import device_start, layout_of
from octavo.runner.device_runner import DeviceRunner
from octavo.runner.device_start import start_on_device
from octavo.runner.memory_plan import plan_memory
from octavo.runner.null_steps import largest_null_step

pytestmark = pytest.mark.slow

KEPT_BYTES = 5 << 20


class KeepingDevice(FakeDevice):
    """Its libraries keep memory from the first work on."""

    def __init__(self):
        super().__init__()
        self._kept_bytes = 0

    def launch(self, work):
        self._kept_bytes = KEPT_BYTES
        super().launch(work)

    @property
    def memory(self):
        return dataclasses.replace(super().memory, allocated_bytes=self._kept_bytes)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load_model(open_checkpoint(tiny_llama[0]), torch.float32, torch.device("cpu"), lambda phase, fraction: None)


@pytest.fixture
def start(model, tiny_llama):
    def start(device=None, **settings):
        defaults = {"max_num_seqs": 2, "max_num_batched_tokens": 24, "num_gpu_blocks_override": 20}
        config = resolve(EngineConfig(**(defaults | settings)), open_checkpoint(tiny_llama[0]))
        layout = layout_of(model.spec, config, torch.float32)
        with interpreted(), patch("octavo.kernels.language.on_gpu", lambda tensor: False):
            return start_on_device(model, layout, config, device or FakeDevice(), lambda phase, fraction: None)

    return start


def test_the_largest_step_has_no_position_that_the_model_does_not_know(start, model):
    made = []

    def noted(*args):
        made.append(largest_null_step(*args))
        return made[-1]

    # Blocks of 512 tokens hold twice what the model's context is.
    with patch("octavo.runner.device_runner.largest_null_step", noted):
        start(block_size=512, max_num_batched_tokens=600)
    assert made
    assert all(arrays.positions.max() == model.spec.max_position_embeddings - 1 for arrays in made)


def test_what_libraries_keep_from_the_first_step_on_is_part_of_the_plan(start):
    with patch.object(device_start, "plan_memory", wraps=plan_memory) as planned:
        start(KeepingDevice())
    assert planned.call_args.args[0].tables == KEPT_BYTES


def test_what_was_measured_with_is_gone_before_the_cache_is_made(start):
    made = []
    init = DeviceRunner.__init__

    def noted(runner, *args):
        made.append(weakref.ref(runner))
        init(runner, *args)

    def planned(*args):
        assert len(made) == 1
        assert made[0]() is None
        return plan_memory(*args)

    gc.disable()
    try:
        with patch.object(DeviceRunner, "__init__", noted), patch.object(device_start, "plan_memory", planned):
            start()
    finally:
        gc.enable()
    assert len(made) == 2
