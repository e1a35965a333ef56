"""Safetensors read by threads through pinned buffers straight to the device, ahead of whoever takes the tensors.

Knows nothing of what the tensors are for. Reading and copying release the interpreter's lock, so that eight threads
keep a PCIe 5 bus busy from the page cache; conversion to the dtype asked for is the device's work.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from octavo.errors import ModelLoadError
from octavo.models.safetensors_file import SafetensorsFile, StoredTensor
from octavo.models.weight_queue import Arriving, Chunk, WeightQueue

# One thread copies about 8 GB/s out of the page cache; the bus takes 50.
_MOST_THREADS = 8
_BUFFERS_PER_THREAD = 2
# A multiple of every type's size. Long enough that the interpreter's part (tens of microseconds) does not count.
_CHUNK_BYTES = 16 << 20
# How much may lie ready that nobody has taken yet: a model that is quantised as it is built must not be held twice.
_AHEAD_BYTES = 4 << 30


class _Buffer:
    """Host memory of one chunk, pinned for a GPU. It is filled again only when the copy out of it is done."""

    def __init__(self, size_bytes: int, stream: torch.cuda.Stream | None) -> None:
        self._memory = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=stream is not None)
        self._stream = stream
        self._copied = None if stream is None else torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def carry(self, chunk: Chunk) -> None:
        """From the file to the tensor on the device; on a GPU the copy is only queued when this returns."""
        stored, target = chunk.arriving.stored, chunk.arriving.flat
        assert stored.dtype is not None and target is not None
        width = stored.dtype.itemsize
        staged = self._memory[: (chunk.end - chunk.begin) * width]
        if self._copied is not None:
            self._copied.synchronize()
        stored.file.read_into(staged.numpy().data, stored.offset + chunk.begin * width)
        target[chunk.begin : chunk.end].copy_(staged.view(stored.dtype), non_blocking=True)
        if self._copied is not None:
            self._copied.record(self._stream)


class PinnedReader:
    """A WeightReader whose tensors lie on `device`. Owns the files, the threads, the stream and what nobody took yet.

    To be used in a `with`: leaving it ends the threads, however far they are.
    """

    def __init__(
        self,
        paths: tuple[Path, ...],
        device: torch.device,
        *,
        chunk_bytes: int = _CHUNK_BYTES,
        ahead_bytes: int = _AHEAD_BYTES,
    ) -> None:
        """Raises ModelLoadError that names a file which is missing or broken."""
        self._device = device
        self._chunk_bytes = chunk_bytes
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._files: list[SafetensorsFile] = []
        self._stored: dict[str, StoredTensor] = {}
        try:
            for path in paths:
                self._files.append(SafetensorsFile(path))
                self._stored |= self._files[-1].tensors
        except ModelLoadError:
            self._close_files()
            raise
        self.shapes = {name: stored.shape for name, stored in self._stored.items()}
        readable = {name: stored for name, stored in self._stored.items() if stored.dtype is not None}
        self._queue = WeightQueue(readable, ahead_bytes, self._begin)
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> PinnedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._queue.close()
        for thread in self._threads:
            thread.join()
        self._close_files()
        if self._stream is not None:
            # What was taken is used on whatever stream from here on.
            torch.cuda.synchronize(self._device)

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor on the device, ready for work on the current stream. The first call starts the threads.

        Raises ModelLoadError that names tensor and file when it cannot be read, or is no plain floating-point type.
        """
        stored = self._stored[name]
        if stored.dtype is None:
            raise ModelLoadError(
                f"tensor {name} in {stored.file.path.name} is stored as {stored.kind}; "
                "quantised weights are not supported"
            )
        if not self._threads:
            self._start_threads()
        arrived = self._queue.take(name)
        if arrived.error is not None:
            raise ModelLoadError(f"tensor {name} cannot be read from {stored.file.path}: {arrived.error}")
        assert arrived.flat is not None
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            # Its memory goes back to the reader's stream: not before the work of this one is done.
            arrived.flat.record_stream(current)
        return arrived.flat.view(stored.shape).to(dtype)

    def _start_threads(self) -> None:
        for number in range(min(_MOST_THREADS, len(os.sched_getaffinity(0)))):
            thread = threading.Thread(target=self._carry_chunks, name=f"octavo-weights-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _begin(self, arriving: Arriving) -> list[Chunk]:
        """Gives a tensor its memory; returns the pieces in which it is to be read."""
        stored = arriving.stored
        assert stored.dtype is not None
        size = stored.size_bytes // stored.dtype.itemsize
        with torch.inference_mode(), self._on_stream():
            # In the file's type: a copy that converts as well would first do so on the host, and wait for it.
            arriving.flat = torch.empty(size, dtype=stored.dtype, device=self._device)
        step = self._chunk_bytes // stored.dtype.itemsize
        return [Chunk(arriving, begin, min(begin + step, size)) for begin in range(0, size, step)]

    def _carry_chunks(self) -> None:
        """A thread's life."""
        try:
            with torch.inference_mode(), self._on_stream():
                buffers = [_Buffer(self._chunk_bytes, self._stream) for _ in range(_BUFFERS_PER_THREAD)]
                for number, chunk in enumerate(self._queue.chunks()):
                    error = None
                    try:
                        buffers[number % len(buffers)].carry(chunk)
                    except (OSError, EOFError, RuntimeError) as found:
                        error = found
                    self._queue.done(chunk, error)
        except Exception as error:
            # Nobody may wait for a thread that is no more.
            self._queue.close(error)

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _close_files(self) -> None:
        for file in self._files:
            file.close()
