"""Work on CPU tensors, watched as if they were a GPU's: what would make the host wait is refused, graphs are recorded.

Tensors that PyTorch allocated on the host are not told from a device's; memory of numpy and pinned memory are.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction

from octavo.kernels import native

aten = torch.ops.aten

# What reads a tensor on the host, or makes one of the host's numbers: a GPU's tensors would be waited for.
_HOST_FUNCTIONS = (
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.__array__,
    torch.Tensor.cpu,
    torch.Tensor.pin_memory,
    torch.Tensor.new_tensor,
    torch.tensor,
    torch.as_tensor,
)
_MASKS = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)
_WAITING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_EMPTY = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)

_run_kernel = InterpretedFunction.run


class RefusedWork(AssertionError):
    """The work would not do on a GPU, or would make the host wait for it."""


class WorkWatch:
    """Sees every operation of PyTorch, every kernel of the Triton language and every C kernel inside `watching`."""

    def __init__(self):
        self.allocated_bytes = 0
        self._pinned = {}
        self._recording = None
        self.is_paused = False

    def add_pinned(self, tensor):
        self._pinned[_storage_id(tensor)] = tensor

    def is_pinned(self, tensor):
        return _storage_id(tensor) in self._pinned

    @contextmanager
    def watching(self, recording=None):
        self._recording = recording
        watch, native_function = self, native.function

        def run(kernel, *args, **kwargs):
            return watch.run_kernel(kernel, args, kwargs)

        def function(name, tensor):
            found = native_function(name, tensor)
            return found and partial(watch.run_native, found)

        try:
            with (
                patch.object(InterpretedFunction, "run", run),
                patch.object(native, "function", function),
                _Operations(self),
                _Functions(self),
            ):
                yield
        finally:
            self._recording = None

    @contextmanager
    def paused(self):
        """For what is no work of its own: the inside of a kernel, a replay."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    def run_function(self, function, args, kwargs):
        if not self.is_paused:
            if function in _HOST_FUNCTIONS:
                raise RefusedWork(f"{function.__name__} makes the host wait for the device")
            if function is torch.Tensor.to and self.is_pinned(args[0]):
                # On a GPU this is a copy to the device.
                place = torch.empty(args[0].shape, dtype=args[0].dtype)
                return place.copy_(args[0], non_blocking=kwargs.get("non_blocking", False))
        return function(*args, **kwargs)

    def run_operation(self, operation, args, kwargs):
        if self.is_paused:
            return operation(*args, **kwargs)
        _refuse_waiting(operation, args, kwargs)
        self._refuse_host_memory(operation, args, kwargs)
        if self._recording:
            self._recording.keep(_written(operation, args, kwargs))
        result = operation(*args, **kwargs)
        given = {_storage_id(tensor) for tensor in _tensors(args, kwargs)}
        made = [index for index, tensor in enumerate(_tensors(result)) if _storage_id(tensor) not in given]
        self.allocated_bytes += sum(_tensors(result)[index].untyped_storage().nbytes() for index in made)
        if self._recording:
            self._recording.add_operation(operation, args, kwargs, result, made)
        return result

    def run_kernel(self, kernel, args, kwargs):
        if not self.is_paused:
            self._refuse_pinned(kernel.__name__, _tensors(args, kwargs))
            if self._recording:
                self._recording.keep(_tensors(args, kwargs))
                self._recording.add(partial(_run_kernel, kernel, *args, **kwargs))
        with self.paused():
            return _run_kernel(kernel, *args, **kwargs)

    def run_native(self, function, call):
        """Its struct holds plain addresses. What they point to is kept by the operations that made it."""
        if self._recording and not self.is_paused:
            self._recording.add(partial(function, call))
        return function(call)

    def _refuse_host_memory(self, operation, args, kwargs):
        if operation is aten.copy_.default:
            target, source = args[:2]
            non_blocking = (*args[2:], kwargs.get("non_blocking"))[0]
            self._refuse_pinned("copy_ to", [target])
            if self.is_pinned(source):
                if not non_blocking:
                    raise RefusedWork("copy_ from pinned memory without non_blocking makes the host wait")
                plain = target.dtype == source.dtype and target.shape == source.shape
                if not (plain and target.is_contiguous() and source.is_contiguous()):
                    raise RefusedWork("copy_ from pinned memory goes through other host memory unless plain")
            elif not source.untyped_storage().resizable() and (self._recording or not non_blocking):
                # Launched work may pin it on its way; a graph would read it at each replay.
                raise RefusedWork("copy_ from host memory that is not pinned")
        elif not operation.is_view:
            self._refuse_pinned(operation, _tensors(args, kwargs))

    def _refuse_pinned(self, what, tensors):
        if any(self.is_pinned(tensor) for tensor in tensors):
            raise RefusedWork(f"{what} pinned host memory")


class Recording:
    """What a graph holds: the operations with the very tensors. The capture itself changes no memory but its own."""

    def __init__(self):
        self._steps = []
        self._made = {}
        self._before = {}

    def add(self, step):
        self._steps.append(step)

    def add_operation(self, operation, args, kwargs, result, made):
        kept = [_tensors(result)[index] for index in made]
        for tensor in kept:
            self._made[_storage_id(tensor)] = tensor
        if operation.overloadpacket in _EMPTY or not (kept or _written(operation, args, kwargs)):
            return

        def again():
            results = _tensors(operation(*args, **kwargs))
            for index, tensor in zip(made, kept, strict=True):
                tensor.copy_(results[index])

        self.add(again)

    def keep(self, tensors):
        """Remembers what is about to be written, unless the graph owns it."""
        for tensor in tensors:
            if _storage_id(tensor) not in self._before and _storage_id(tensor) not in self._made:
                memory = _bytes(tensor)
                self._before[_storage_id(tensor)] = (memory, memory.clone())

    def close(self):
        for memory, before in self._before.values():
            memory.copy_(before)
        self._before.clear()
        self._poison()

    def replay(self):
        for step in self._steps:
            step()
        self._poison()

    def _poison(self):
        """Other graphs use a graph's own memory between its replays."""
        for tensor in self._made.values():
            poison(tensor)


class _Operations(TorchDispatchMode):
    def __init__(self, watch):
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not self._watch.is_paused:
            # Inside an operation made of others, one of them may make the host wait.
            with self:
                result = operation.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self._watch.run_operation(operation, args, kwargs)


class _Functions(TorchFunctionMode):
    def __init__(self, watch):
        super().__init__()
        self._watch = watch

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self._watch.run_function(function, args, kwargs or {})


def poison(tensor):
    """Makes all of its storage what nobody computes: NaN, an index out of any range, True."""
    pattern = 0xFF if tensor.is_floating_point() else 0x01 if tensor.dtype == torch.bool else 0x7F
    _bytes(tensor).fill_(pattern)


def _refuse_waiting(operation, args, kwargs):
    packet = operation.overloadpacket
    if packet in _MASKS:
        if any(tensor.dtype in (torch.bool, torch.uint8) for tensor in _tensors(args[1], kwargs.get("indices"))):
            raise RefusedWork(f"{operation} with a mask counts it on the host")
    elif packet is aten.repeat_interleave and kwargs.get("output_size") is not None:
        return
    elif any(tag in _WAITING for tag in operation.tags):
        raise RefusedWork(f"{operation} makes the host wait for the device")


def _written(operation, args, kwargs):
    written = []
    for index, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(kwargs.get(argument.name, args[index] if index < len(args) else None))
    return _tensors(written)


def _tensors(*values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _storage_id(tensor):
    return tensor.untyped_storage()._cdata


def _bytes(tensor):
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (storage.nbytes(),), (1,))
