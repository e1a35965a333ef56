from unittest.mock import patch

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from kernels.triton_support import interpreted
from runner.fake_device import FakeDevice
from runner.work_watch import RefusedWork

from octavo.kernels import language, native
from octavo.kernels.rms_norm import add_rms_norm
from octavo.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference


@pytest.fixture
def device():
    return FakeDevice()


@pytest.fixture
def fetched(device):
    """Launches work and waits for a copy of the tensor that it wrote, as a list."""

    def fetch(work, source):
        target = device.pinned(source.numel())
        device.launch(work)
        device.fetch(source, target).wait()
        return target.tolist()

    return fetch


def test_launched_work_runs_when_somebody_waits_for_what_it_left(device):
    source, other, target = (*torch.zeros(2, 2, dtype=torch.int64), device.pinned(2))
    device.launch(lambda: source.add_(1))
    first = device.fetch(source, target)
    device.launch(lambda: other.add_(1))
    assert not source.any() and target.tolist() not in ([0, 0], [1, 1])
    first.wait()
    assert target.tolist() == [1, 1] and device.num_waiting == 1 and not other.any()
    device.synchronize()
    assert other.tolist() == [1, 1]


def test_a_staging_buffer_that_is_filled_again_too_early_shows(device):
    staging, place, target = device.pinned(1), torch.zeros(1, dtype=torch.int64), device.pinned(1)
    staging[0] = 7
    device.launch(lambda: place.copy_(staging, non_blocking=True))
    arrival = device.fetch(place, target)
    staging[0] = 8
    arrival.wait()
    assert target.item() == 8


def test_work_that_overwrites_what_is_still_fetched_is_refused(device):
    source, target = torch.zeros(1, dtype=torch.int64), device.pinned(1)
    device.launch(lambda: source.fill_(1))
    device.fetch(source, target)
    device.launch(lambda: source.fill_(2))
    with pytest.raises(RefusedWork, match="has not waited for"):
        device.synchronize()


def test_a_source_may_be_overwritten_once_the_host_has_its_copy(device, fetched):
    source = torch.zeros(1, dtype=torch.int64)
    assert [fetched(lambda value=value: source.fill_(value), source) for value in (1, 2)] == [[1], [2]]


def some_operations(numbers, place, weight, out):
    """Functions, views, a view written through, in place, out=, several results, shapes of any rank."""
    wide = numbers.float().view(2, 2)
    wide[:, 1] *= 3
    wide.t().add_(1)
    best, index = (wide @ weight).max(dim=1)
    scratch = torch.empty(2)
    torch.add(best, index, out=scratch)
    place[1:3] = scratch.long()
    out.index_copy_(0, numbers[:1] % 2, place[1:2] + place[2:3])


def test_a_replay_computes_again_from_what_static_memory_holds(device):
    numbers, place, out = (torch.zeros(count, dtype=torch.int64) for count in (4, 4, 2))
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    replay = device.capture(lambda: some_operations(numbers, place, weight, out))
    assert place.tolist() == [0] * 4 and out.tolist() == [0, 0], "a capture only records"
    for given in ([1, 2, 3, 4], [9, -5, 0, 7]):
        numbers.copy_(torch.tensor(given))
        device.launch(replay)
        device.synchronize()
        wanted = torch.zeros_like(place), torch.zeros_like(out)
        some_operations(numbers, wanted[0], weight, wanted[1])
        assert (place.tolist(), out.tolist()) == tuple(tensor.tolist() for tensor in wanted)
        out.zero_()


def test_a_number_of_the_host_is_baked_into_a_graph(device):
    counts, place = [2], torch.ones(1, dtype=torch.int64)
    replay = device.capture(lambda: place.mul_(counts[0]))
    counts[0] = 3
    device.launch(replay)
    device.synchronize()
    assert place.item() == 2


def test_a_tensor_that_takes_another_s_place_is_not_seen_by_a_graph(device):
    held = {"input": torch.ones(1)}
    place = torch.zeros(1)
    replay = device.capture(lambda: place.copy_(held["input"]))
    held["input"] = torch.full((1,), 5.0)
    device.launch(replay)
    device.synchronize()
    assert place.item() == 1


def test_what_a_graph_allocates_is_of_no_use_outside(device):
    numbers, kept = torch.ones(3), []
    replay = device.capture(lambda: kept.append(numbers + 1))
    device.launch(replay)
    device.synchronize()
    assert kept[0].isnan().all()


def test_memory_that_is_only_reserved_is_filled_by_nobody(device):
    place = torch.zeros(2)
    device.launch(device.capture(lambda: place.copy_(torch.empty(2))))
    device.synchronize()
    assert place.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("way", ["triton language", "C"])
def test_kernels_are_captured_with_their_arguments(device, dtype, way):
    if way == "C" and native.library() is None:
        pytest.skip("there is no C compiler")
    gate_up, place = torch.zeros(3, 34, dtype=dtype), torch.zeros(3, 17, dtype=dtype)
    with interpreted(), patch.object(language, "on_gpu", lambda tensor: way == "triton language"):
        replay = device.capture(lambda: place.copy_(silu_and_mul(gate_up * 2)))
        gate_up.copy_(torch.randn(3, 34, generator=torch.Generator().manual_seed(1)))
        assert not place.any()
        device.launch(replay)
        device.synchronize()
    torch.testing.assert_close(place, silu_and_mul_reference(gate_up * 2), rtol=1e-2, atol=1e-2)
    assert place.any()


def test_kernels_that_are_captured_do_not_write_yet(device):
    x, residual = torch.ones(1, 16), torch.zeros(1, 16)
    with interpreted(), patch.object(language, "on_gpu", lambda tensor: True):
        replay = device.capture(lambda: add_rms_norm(x, residual, torch.ones(16), 1e-5))
        assert not residual.any()
        device.launch(replay)
        device.synchronize()
    assert residual.tolist() == x.tolist()


NUMBERS = torch.arange(4.0)
MASK = NUMBERS > 1
WAITING = {
    "item": lambda: NUMBERS.sum().item(),
    "float": lambda: float(NUMBERS[0]),
    "if": lambda: 1 if NUMBERS[0] else 2,
    "tolist": lambda: NUMBERS.tolist(),
    "numpy": lambda: NUMBERS.numpy(),
    "asarray": lambda: np.asarray(NUMBERS),
    "cpu": lambda: NUMBERS.cpu(),
    "tensor": lambda: torch.tensor([1, 2]),
    "as_tensor": lambda: torch.as_tensor(np.zeros(2)),
    "nonzero": lambda: NUMBERS.nonzero(),
    "where": lambda: torch.where(MASK),
    "mask": lambda: NUMBERS[MASK],
    "write by mask": lambda: NUMBERS.__setitem__(MASK, torch.zeros(2)),
    "slice": lambda: NUMBERS[: MASK.sum()],
    "unique": lambda: torch.unique(NUMBERS),
    "equal": lambda: torch.equal(NUMBERS, NUMBERS),
    "inside another": lambda: torch.allclose(NUMBERS, NUMBERS),
    "repeat": lambda: NUMBERS.repeat_interleave(MASK.long()),
    "foreign memory": lambda: NUMBERS.clone().copy_(torch.from_numpy(np.zeros(4, np.float32))),
}


@pytest.mark.parametrize("work", WAITING.values(), ids=WAITING)
def test_work_that_would_make_the_host_wait_is_refused(device, work):
    with pytest.raises(RefusedWork):
        device.capture(work)
    device.launch(work)
    with pytest.raises(RefusedWork):
        device.synchronize()


def test_a_capture_that_is_refused_leaves_static_memory_as_it_was(device):
    place = torch.zeros(1)
    with pytest.raises(RefusedWork):
        device.capture(lambda: place.add_(1).item())
    assert place.item() == 0


NOT_FOR_PINNED = {
    "blocking": lambda pinned: torch.zeros(4, dtype=torch.int64).copy_(pinned),
    "other type": lambda pinned: torch.zeros(4).copy_(pinned, non_blocking=True),
    "with gaps": lambda pinned: torch.zeros(2, dtype=torch.int64).copy_(pinned[::2], non_blocking=True),
    "used in place": lambda pinned: pinned + 1,
    "blocking to": lambda pinned: pinned.to("cpu"),
    "written": lambda pinned: pinned.copy_(torch.ones(4, dtype=torch.int64)),
}


@pytest.mark.parametrize("work", NOT_FOR_PINNED.values(), ids=NOT_FOR_PINNED)
def test_pinned_memory_is_only_copied_from_and_as_it_is(device, work):
    pinned = device.pinned(4)
    device.launch(lambda: work(pinned))
    with pytest.raises(RefusedWork):
        device.synchronize()


def test_plain_parts_of_pinned_memory_are_copied(device, fetched):
    pinned, place = device.pinned(4), torch.zeros(2, dtype=torch.int64)
    pinned.copy_(torch.arange(4))
    assert fetched(lambda: place.copy_(pinned[1:3], non_blocking=True), place) == [1, 2]
    assert fetched(lambda: place.copy_(pinned[2:].to("cpu", non_blocking=True)), place) == [2, 3]


def test_kernels_do_not_take_pinned_memory(device):
    pinned = device.pinned(4)
    with interpreted(), patch.object(language, "on_gpu", lambda tensor: True):
        device.launch(lambda: silu_and_mul(pinned.view(torch.float32).view(2, 4)))
        with pytest.raises(RefusedWork, match="pinned"):
            device.synchronize()


def test_peak_bytes_counts_what_work_allocates(device):
    assert device.peak_bytes(lambda: (NUMBERS + 1).view(2, 2).mul_(2)) == NUMBERS.nbytes


def test_memory_for_graphs_may_end(device):
    device = FakeDevice(max_graphs=1)
    device.capture(lambda: None)
    with pytest.raises(torch.OutOfMemoryError):
        device.capture(lambda: None)
