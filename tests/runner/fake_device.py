"""FakeDevice: a device of CPU tensors that is as late as a GPU may be, and as strict.

Launched work waits in a queue until somebody waits for a copy: a staging buffer that is overwritten too early shows.
Graphs replay what was recorded, on the memory that was there: a host's number that was baked in shows as stale. With
`interpreted()` around it and `octavo.kernels.language.on_gpu` true, work takes the GPU's way; else the C kernels run.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import partial

import torch
from runner.work_watch import Recording, RefusedWork, WorkWatch

from octavo.runner.device import DeviceMemory


class FakeDevice:
    """`work` runs when it is waited for: what it takes from the host is held by itself, or lies in pinned memory."""

    def __init__(self, max_graphs=None, memory=None):
        """max_graphs: captures that find memory; None for all."""
        self._max_graphs = max_graphs
        self._memory = memory or DeviceMemory(free_bytes=2**30, total_bytes=2**30, allocated_bytes=0)
        self._watch = WorkWatch()
        self._queue = deque()
        self._arrivals = []
        self._running = threading.RLock()
        self.num_graphs = 0

    @property
    def torch_device(self):
        return torch.device("cpu")

    @property
    def memory(self):
        return self._memory

    @property
    def num_waiting(self):
        """Pieces of work and copies that were launched and have not run."""
        return len(self._queue)

    def pinned(self, num_words):
        tensor = torch.zeros(num_words, dtype=torch.int64)
        self._watch.add_pinned(tensor)
        return tensor

    def launch(self, work):
        # A copy beside the work may come after it as well, unless the host has seen it.
        self._arrivals = [arrival for arrival in self._arrivals if not arrival.waited]
        self._queue.append(partial(self._run, work, tuple(self._arrivals)))

    def capture(self, work):
        self.synchronize()
        if self.num_graphs == self._max_graphs:
            raise torch.OutOfMemoryError("the fake device holds no more graphs")
        recording = Recording()
        with self._running, torch.inference_mode():
            try:
                with self._watch.watching(recording):
                    work()
            finally:
                recording.close()
        self.num_graphs += 1

        def replay():
            with self._watch.paused():
                recording.replay()

        return replay

    def fetch(self, source, target):
        assert self._watch.is_pinned(target) and not self._watch.is_pinned(source)
        assert source.dtype == target.dtype and source.shape == target.shape
        assert source.is_contiguous() and target.is_contiguous()
        arrival = LateArrival(self, source, target)
        self._arrivals.append(arrival)
        self._queue.append(arrival.copy)
        return arrival

    def synchronize(self):
        while self._queue:
            self.run_next()

    def peak_bytes(self, work):
        """All that `work` allocates, as if it freed nothing."""
        self.synchronize()
        before = self._watch.allocated_bytes
        self.launch(work)
        self.synchronize()
        return self._watch.allocated_bytes - before

    def run_next(self):
        with self._running:
            if self._queue:
                self._queue.popleft()()

    def _run(self, work, arrivals):
        before = [arrival.source.clone() for arrival in arrivals]
        with torch.inference_mode(), self._watch.watching():
            work()
        for arrival, source in zip(arrivals, before, strict=True):
            if not torch.equal(arrival.source.view(torch.uint8), source.view(torch.uint8)):
                raise RefusedWork("work overwrites the source of a copy that the host has not waited for")


class LateArrival:
    def __init__(self, device, source, target):
        self._device = device
        self._arrived = False
        self._target = target
        self.source = source
        self.waited = False
        target.fill_(-(2**40))

    def copy(self):
        self._target.copy_(self.source)
        self._arrived = True

    def wait(self):
        while not self._arrived:
            self._device.run_next()
        self.waited = True
