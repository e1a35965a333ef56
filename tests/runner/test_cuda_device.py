import subprocess
import sys
import warnings

import pytest
import torch

from octavo.errors import ModelLoadError
from octavo.runner.cuda_device import CudaDevice

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")

# Long beside what a launch costs the host: a tenth of a second and more.
_CYCLES = 300_000_000


@pytest.fixture(scope="module")
def device():
    before = torch.cuda.current_stream()
    yield CudaDevice(torch.device("cuda"))
    torch.cuda.synchronize()
    torch.cuda.set_stream(before)


@pytest.fixture
def fetched(device):
    """Waits for a copy of int64 [n], as a list."""

    def fetch(source):
        target = device.pinned(source.numel())
        device.fetch(source, target).wait()
        return target.tolist()

    return fetch


@pytest.fixture
def numbers(device):
    """int64 [2] of zeros, made between launches."""
    return torch.zeros(2, dtype=torch.int64, device=device.torch_device)


@pytest.fixture
def capture(device):
    """Launches work, then captures it, as a ladder does."""

    def launch_and_capture(work):
        device.launch(work)
        return device.capture(work)

    return launch_and_capture


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_device_is_refused():
    with pytest.raises(ModelLoadError, match="'cuda' needs an NVIDIA GPU"):
        CudaDevice(torch.device("cuda"))


@needs_gpu
def test_a_gpu_that_does_not_exist_is_refused():
    with pytest.raises(ModelLoadError, match="'cuda:99' does not exist"):
        CudaDevice(torch.device("cuda", 99))


@needs_gpu
def test_work_is_done_in_the_order_in_which_it_was_launched(device, numbers, fetched):
    device.launch(lambda: numbers.add_(3))
    device.launch(lambda: numbers.mul_(2))
    assert fetched(numbers) == [6, 6]


@needs_gpu
def test_what_is_made_between_launches_is_in_order_with_them(device, fetched):
    streams = []
    device.launch(lambda: torch.cuda._sleep(_CYCLES))
    made = torch.full((2,), 5, device=device.torch_device)
    device.launch(lambda: streams.append(torch.cuda.current_stream()))
    device.launch(lambda: made.add_(1))
    assert fetched(made) == [6, 6]
    assert streams == [torch.cuda.current_stream()] and streams[0] != torch.cuda.default_stream()


@needs_gpu
def test_nothing_waits_for_the_gpu_but_an_arrival(device, numbers, capture):
    staging, target = device.pinned(2), device.pinned(2)
    staging.copy_(torch.tensor([3, 4]))
    replay = capture(lambda: numbers.add_(1))
    device.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        device.launch(lambda: torch.cuda._sleep(_CYCLES))
        device.launch(lambda: numbers.copy_(staging, non_blocking=True))
        device.launch(replay)
        arrival = device.fetch(numbers, target)
        assert not torch.cuda.current_stream().query() and target.tolist() == [0, 0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    arrival.wait()
    arrival.wait()
    assert target.tolist() == [4, 5]


@needs_gpu
def test_a_copy_arrives_while_later_work_is_still_done(device, numbers):
    target = device.pinned(2)
    device.launch(lambda: numbers.fill_(1))
    arrival = device.fetch(numbers, target)
    device.launch(lambda: torch.cuda._sleep(_CYCLES))
    arrival.wait()
    assert target.tolist() == [1, 1] and not torch.cuda.current_stream().query()
    device.synchronize()
    assert torch.cuda.current_stream().query()


@needs_gpu
def test_many_copies_at_once_each_bring_their_own(device):
    slots = torch.zeros(8, 1, dtype=torch.int64, device=device.torch_device)
    targets = [device.pinned(1) for _ in range(8)]
    for _ in range(3):
        arrivals = []
        for index, (slot, target) in enumerate(zip(slots, targets, strict=True)):
            device.launch(lambda index=index, slot=slot: slot.add_(index + 1))
            arrivals.append(device.fetch(slot, target))
        for arrival in reversed(arrivals):
            arrival.wait()
    assert [target.item() for target in targets] == [3 * (index + 1) for index in range(8)]


@needs_gpu
def test_a_graph_computes_again_from_what_its_inputs_hold(device, numbers, fetched, capture):
    place = torch.zeros_like(numbers)
    replay = capture(lambda: place.copy_(numbers * 2 + 1))
    for value in (1, 5):
        device.launch(lambda value=value: numbers.fill_(value))
        device.launch(replay)
        assert fetched(place) == [2 * value + 1] * 2


@needs_gpu
def test_a_capture_computes_nothing(device, numbers, fetched, capture):
    capture(lambda: numbers.add_(1))
    assert fetched(numbers) == [1, 1]


@needs_gpu
def test_graphs_share_their_memory(device, capture):
    x = torch.ones(1 << 22, device=device.torch_device)

    def work():
        x.mul_((x + 1).sum() * 0 + 1)

    capture(work)
    before = torch.cuda.memory_reserved()
    for _ in range(4):
        capture(work)
    assert torch.cuda.memory_reserved() - before < x.nbytes


@needs_gpu
@pytest.mark.parametrize("times", [1, 2])
def test_a_capture_that_waits_for_the_gpu_fails_and_the_next_one_works(device, numbers, fetched, times):
    device.launch(lambda: numbers.add_(1).sum())
    for _ in range(times):
        with pytest.raises(RuntimeError, match="captur"):
            device.capture(lambda: numbers.add_(1).sum().item())
    assert fetched(numbers) == [1, 1]
    device.launch(device.capture(lambda: numbers.add_(1)))
    assert fetched(numbers) == [2, 2]
    # The allocator serves the stream again as before.
    device.launch(lambda: numbers.copy_(numbers + 1))
    assert fetched(numbers) == [3, 3] and device.memory.free_bytes > 0


@needs_gpu
def test_where_memory_ends_the_device_can_be_used_on(device, numbers, fetched):
    def too_much():
        numbers.add_(1)
        torch.empty(1 << 50, dtype=torch.uint8, device=device.torch_device)

    with pytest.raises(torch.OutOfMemoryError):
        device.capture(too_much)
    with pytest.raises(torch.OutOfMemoryError):
        device.launch(too_much)
    device.launch(device.capture(lambda: numbers.add_(1)))
    assert fetched(numbers) == [2, 2]


@needs_gpu
def test_what_work_raises_comes_out_as_it_is(device, numbers):
    def work():
        numbers.add_(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        device.launch(work)
    with pytest.raises(ZeroDivisionError):
        device.capture(work)
    with pytest.raises(RuntimeError, match="size"):
        device.launch(lambda: torch.ones(2, device=device.torch_device) + torch.ones(3, device=device.torch_device))


@needs_gpu
def test_memory_and_peaks_are_of_the_gpu(device):
    size = 1 << 28
    memory = device.memory
    assert 0 < memory.free_bytes < memory.total_bytes and memory.allocated_bytes >= 0

    def work():
        torch.empty(size, dtype=torch.uint8, device=device.torch_device)
        torch.empty(size // 2, dtype=torch.uint8, device=device.torch_device)

    assert size <= device.peak_bytes(work) < 1.1 * size
    assert size <= device.peak_bytes(work) < 1.1 * size, "memory that was kept for later use counts all the same"
    held = torch.empty(size, dtype=torch.uint8, device=device.torch_device)
    assert device.memory.allocated_bytes - memory.allocated_bytes >= held.nbytes
    assert memory.free_bytes - device.memory.free_bytes >= 0.9 * held.nbytes


_LOST = """
import torch
from octavo.errors import EngineError
from octavo.runner.cuda_device import CudaDevice

device = CudaDevice(torch.device("cuda"))
number, target = torch.zeros(1, dtype=torch.int64, device="cuda"), device.pinned(1)
device.launch(lambda: torch._assert_async(number))
calls = (
    lambda: device.fetch(number, target).wait(),
    device.synchronize,
    lambda: device.launch(lambda: number.add_(1)),
    lambda: device.capture(lambda: number.add_(1)),
)
for call in calls:
    try:
        call()
    except EngineError as error:
        print(error, flush=True)
"""


@needs_gpu
def test_a_fault_on_the_gpu_is_said_by_whatever_comes_next():
    lost = subprocess.run([sys.executable, "-c", _LOST], capture_output=True, text=True, timeout=120, check=False)
    lines = lost.stdout.splitlines()
    assert len(lines) == 4 and all(line.startswith("the device is lost: ") for line in lines), lost.stderr
