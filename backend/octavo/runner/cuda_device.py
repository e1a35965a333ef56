"""CudaDevice: work of the runner on one NVIDIA GPU, in the order of one stream; results come back on a second one.

Memory is not tracked between the two streams: what crosses them is kept by its owner and never freed while copied.
Leaves the allocator's settings (expandable segments among them) to who starts the process.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from octavo.errors import EngineError, ModelLoadError
from octavo.runner.device import Arrival, DeviceMemory

# How libraries below PyTorch say that memory ran out, each in an error of another type.
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")


class CudaDevice:
    """Owns the streams, the events and the memory that captured graphs share.

    Its compute stream becomes the current one of the thread that makes it, so that tensors made there between launches
    are in order with launched work. What other threads or streams write is made visible by `synchronize`.
    """

    def __init__(self, torch_device: torch.device) -> None:
        """Raises ModelLoadError when there is no such GPU."""
        if not torch.cuda.is_available():
            raise ModelLoadError(
                f"device: {str(torch_device)!r} needs an NVIDIA GPU and a PyTorch that was built for it"
            )
        index = torch.cuda.current_device() if torch_device.index is None else torch_device.index
        if index >= torch.cuda.device_count():
            raise ModelLoadError(f"device: 'cuda:{index}' does not exist; there are {torch.cuda.device_count()} GPUs")
        self._torch_device = torch.device("cuda", index)
        self._compute = torch.cuda.Stream(self._torch_device)  # type: ignore[no-untyped-call]
        self._side = torch.cuda.Stream(self._torch_device)  # type: ignore[no-untyped-call]
        self._launched = _new_event()
        self._free_events: list[torch.cuda.Event] = []
        self._graph_pool = torch.cuda.graph_pool_handle()
        # All that were begun, for as long as the device: the pool is dead for good once no graph of it is left, and of
        # a capture that failed the allocator may still ask which memory was to be its own.
        self._graphs: list[torch.cuda.CUDAGraph] = []
        torch.cuda.set_stream(self._compute)

    @property
    def torch_device(self) -> torch.device:
        """With its index."""
        return self._torch_device

    def pinned(self, num_words: int) -> Tensor:
        """See Device. Locking the pages is a slow call to the driver, and sizes are rounded up to powers of two."""
        return torch.zeros(num_words, dtype=torch.int64, pin_memory=True)

    def launch(self, work: Callable[[], None]) -> None:
        """See Device."""
        with self._errors_judged(), torch.inference_mode(), torch.cuda.stream(self._compute):
            work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """See Device. Where memory ends it is tried twice: the allocator gives nothing back during a capture."""
        with self._errors_judged():
            with suppress(torch.OutOfMemoryError):
                return self._captured(work)
            torch.cuda.empty_cache()
            return self._captured(work)

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """On the compute stream, where the libraries' workspaces are that eager work made."""
        graph = torch.cuda.CUDAGraph()
        self._graphs.append(graph)
        with torch.inference_mode(), torch.cuda.stream(self._compute), _no_garbage_collection():
            try:
                graph.capture_begin(pool=self._graph_pool, capture_error_mode="thread_local")
                work()
                graph.capture_end()
            except BaseException:
                self._give_up(graph)
                raise
        return graph.replay

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """Ends a capture that failed, so that the stream and the allocator are as before it.

        A forbidden call inside makes the capture invalid, and ending it raises before the allocator is told: it would
        take the pool to be in use by that capture and refuse the next one.
        """
        try:
            graph.capture_end()
        except RuntimeError:
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(self._torch_device.index, self._graph_pool)

    def fetch(self, source: Tensor, target: Tensor) -> Arrival:
        """See Device. Both contiguous: anything else would be copied twice, through memory allocated for it."""
        assert target.is_pinned() and source.dtype == target.dtype and source.shape == target.shape
        assert source.is_contiguous() and target.is_contiguous()
        with self._errors_judged(), torch.inference_mode(), torch.cuda.stream(self._side):
            self._launched.record(self._compute)
            self._side.wait_event(self._launched)
            target.copy_(source, non_blocking=True)
            event = self._free_events.pop() if self._free_events else _new_event()
            event.record(self._side)
        return _EventArrival(self, event)

    def wait_for(self, event: torch.cuda.Event) -> None:
        """Blocks until what was recorded in `event` is done; the event is for the next copy then."""
        with self._errors_judged():
            event.synchronize()
        self._free_events.append(event)

    def synchronize(self) -> None:
        """See Device. Waits for every stream of the GPU, those of other owners in this process too."""
        with self._errors_judged():
            torch.cuda.synchronize(self._torch_device)

    @property
    def memory(self) -> DeviceMemory:
        """See Device. Gives back what is only kept for later use, which waits for the GPU."""
        with self._errors_judged():
            torch.cuda.empty_cache()
            free_bytes, total_bytes = torch.cuda.mem_get_info(self._torch_device)
        return DeviceMemory(free_bytes, total_bytes, torch.cuda.memory_allocated(self._torch_device))

    def peak_bytes(self, work: Callable[[], None]) -> int:
        """See Device. What the allocator took from the GPU for it, unused ends of its segments included."""
        device = self._torch_device
        self.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        self.launch(work)
        self.synchronize()
        # Segments that were there before may have had room for a part of it.
        peak_allocated, peak_reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        return max(peak_allocated - allocated, peak_reserved - reserved)

    @contextmanager
    def _errors_judged(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            text = str(error)
            if not self._answers():
                raise EngineError(f"the device is lost: {text.partition(chr(10))[0]}") from error
            if any(sign in text for sign in _OUT_OF_MEMORY):
                raise torch.OutOfMemoryError(text) from error
            raise

    def _answers(self) -> bool:
        """False once a fault has made the GPU useless to this process: every call reports it from then on."""
        try:
            self._side.query()
        except RuntimeError:
            return False
        return True


class _EventArrival:
    """A copy on the side stream. For one waiter."""

    __slots__ = ("_device", "_event")

    def __init__(self, device: CudaDevice, event: torch.cuda.Event) -> None:
        self._device = device
        self._event: torch.cuda.Event | None = event

    def wait(self) -> None:
        if self._event is not None:
            self._device.wait_for(self._event)
            self._event = None


def _new_event() -> torch.cuda.Event:
    """Takes no times, and does not put its waiter to sleep: waking up would make each step longer."""
    return torch.cuda.Event(enable_timing=False, blocking=False)  # type: ignore[no-untyped-call]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """What a collection frees may need calls that a capture forbids."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
