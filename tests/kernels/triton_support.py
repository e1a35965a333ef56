"""Kernels of the Triton language without a GPU: run in the language's interpreter, or compiled and looked into.

    with interpreted():  paged_decode(...)         # CPU tensors, real results
    compiled_kernels(90, lambda: paged_decode(...))  # meta tensors, nothing runs; what the compiler made comes back

Both take the wrappers as they are: a wrapper's `kernel[grid](...)` is what changes its meaning.
"""

import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import triton

# The language imports this at a kernel's first launch, and must not do so while its functions are replaced.
import triton.experimental.gluon
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, interpreter
from triton.runtime.jit import JITFunction

# Bytes of shared memory that one program may have.
SHARED_MEMORY_LIMIT = {80: 166912, 90: 232448, 100: 232448}

_SPILL = r"\b(?:STL|LDL)\b"
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_TORCH_TYPES = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
_NARROW = tuple(_TORCH_TYPES)


@contextmanager
def interpreted():
    """Kernels of octavo.kernels launched inside run in the interpreter, on CPU tensors."""
    patch_tensor = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, scope):
        # Triton 3.6 makes an index of an array of one number, which numpy 2.4 refuses.
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with (
        _unchanged_language(),
        _interpreted_functions(),
        patch.object(interpreter, "_patch_lang_tensor", patch_lang_tensor),
        patch.multiple(interpreter.InterpreterBuilder, **_narrow_arithmetic()),
    ):
        yield


@contextmanager
def _interpreted_functions():
    """Everywhere by its name: a wrapper finds its kernel there, and a kernel the functions that it calls."""
    modules = [value for name, value in sys.modules.items() if name.startswith(("octavo.kernels.", "triton.language"))]
    found = [(module, *item) for module in modules for item in vars(module).items() if isinstance(item[1], JITFunction)]
    stands = {id(kernel): interpreter.InterpretedFunction(kernel.fn) for _, _, kernel in found}
    for module, name, kernel in found:
        setattr(module, name, stands[id(kernel)])
    try:
        yield
    finally:
        for module, name, kernel in found:
            setattr(module, name, kernel)


@contextmanager
def _unchanged_language():
    """The interpreter leaves some of its stand-ins in the language; a kernel compiled later would meet them."""
    owners = (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base)
    before = [(owner, dict(vars(owner))) for owner in owners]
    try:
        yield
    finally:
        for owner, attributes in before:
            for name, value in list(vars(owner).items()):
                if name not in attributes:
                    delattr(owner, name)
                elif value is not attributes[name]:
                    setattr(owner, name, attributes[name])


def _narrow_arithmetic():
    """The interpreter keeps bf16 and fp8 as integers and computes with those integers. Here: through fp32."""
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, binary, unary, cast = builder.create_dot, builder.binary_op, builder.unary_op, builder.cast_impl

    def is_narrow(tensor):
        return tensor.dtype.scalar in _NARROW

    def create_dot(self, a, b, d, *args, **kwargs):
        if not (is_narrow(a) or is_narrow(b)):
            return dot(self, a, b, d, *args, **kwargs)
        return handle(np.matmul(_widened(a), _widened(b)).astype(d.data.dtype) + d.data, d.dtype.scalar)

    def binary_op(self, left, right, op):
        if not is_narrow(left):
            return binary(self, left, right, op)
        result = op(_widened(left), _widened(right))
        if result.dtype == bool:
            return handle(result, tl.int1)
        return handle(_narrowed(result, left.dtype.scalar), left.dtype.scalar)

    def unary_op(self, operand, op):
        if not is_narrow(operand):
            return unary(self, operand, op)
        return handle(_narrowed(op(_widened(operand)), operand.dtype.scalar), operand.dtype.scalar)

    def cast_impl(self, source, target_type):
        target = target_type.scalar
        if not (is_narrow(source) or target in _NARROW):
            return cast(self, source, target_type)
        wide = _widened(source)
        if target in _NARROW:
            return handle(_narrowed(wide, target), target)
        return handle(wide.astype(interpreter._get_np_dtype(target)), target)

    def create_fp_to_fp(self, source, target_type, rounding_mode):
        return cast_impl(self, source, target_type)

    return {
        "create_dot": create_dot,
        "binary_op": binary_op,
        "unary_op": unary_op,
        "cast_impl": cast_impl,
        "create_fp_to_fp": create_fp_to_fp,
    }


def _widened(tensor):
    """fp32 (or what it was) from the interpreter's integers."""
    scalar = tensor.dtype.scalar
    if scalar not in _NARROW:
        return tensor.data
    return _torch_view(tensor.data, scalar).float().numpy().reshape(tensor.data.shape)


def _narrowed(wide, scalar):
    """The interpreter's integers from fp32, rounded to the nearest."""
    whole = torch.from_numpy(np.ascontiguousarray(wide, dtype=np.float32).reshape(-1))
    storage = torch.int16 if scalar == tl.bfloat16 else torch.uint8
    kept = np.uint16 if scalar == tl.bfloat16 else np.uint8
    return whole.to(_TORCH_TYPES[scalar]).view(storage).numpy().view(kept).reshape(np.shape(wide))


def _torch_view(data, scalar):
    flat = np.ascontiguousarray(data).reshape(-1)
    integers = flat.view(np.int16) if scalar == tl.bfloat16 else flat.view(np.uint8)
    return torch.from_numpy(integers).view(_TORCH_TYPES[scalar])


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel as the assembler made it. Sizes in bytes a program.

    spills: instructions that keep in memory what registers had no room for; inner_spills: those in innermost loops.
    copies: asynchronous copies to shared memory, by their width in bytes. mma: matrix instructions of a warp, wgmma:
    of four warps.
    """

    name: str
    registers: int
    stack: int
    local: int
    spills: int
    inner_spills: int
    shared: int
    num_warps: int
    copies: dict[int, int]
    mma: int
    wgmma: int
    ttgir: str = field(repr=False)
    sass: str = field(repr=False)

    def programs_per_sm(self, sm):
        """How many fit beside each other: by registers (64 K, in units of 256 a warp), shared memory, warps."""
        registers = -(-self.registers * 32 // 256) * 256 * self.num_warps
        available = SHARED_MEMORY_LIMIT[sm] + 1024
        return min(65536 // registers, available // (self.shared + 1024), 64 // self.num_warps)


class _NoDevice:
    """Stands for the language's driver: enough to compile. The device's number is its architecture's."""

    def __init__(self, sm):
        self._sm = sm

    def get_current_device(self):
        # The language keeps a kernel's compiled versions by device: each architecture is another one.
        return self._sm

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self._sm, 32)


def captured(call):
    """(names, replay): the kernels that `call` launches, in order, and a function that launches them again.

    As a CUDA graph would: the same kernels, grids and arguments. Nothing runs before the replay, in the interpreter.
    """
    launches = []

    def record(self, *args, grid, warmup, **kwargs):
        launches.append((self, grid, args, kwargs))

    def replay():
        with interpreted():
            for kernel, grid, args, kwargs in launches:
                interpreter.InterpretedFunction(kernel.fn)[grid](*args, **kwargs)

    with patch.object(JITFunction, "run", record):
        call()
    return [kernel.__name__ for kernel, *_ in launches], replay


def compiled_kernels(sm, launch):
    """What every kernel that `launch` launches becomes on the architecture `sm`, in order. Nothing runs."""
    found = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append(kernel)
        return kernel

    with patch.object(driver, "_active", _NoDevice(sm)), patch.object(JITFunction, "run", compile_only):
        launch()
    return [_inspect(kernel) for kernel in found]


_inspected = {}


def _inspect(kernel):
    """Once a process for the same code: wrappers launch the same small kernels beside different large ones."""
    if kernel.hash not in _inspected:
        _inspected[kernel.hash] = _disassembled(kernel)
    return _inspected[kernel.hash]


def _disassembled(kernel):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    sizes = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    copies = [_copy_width(name) for name in re.findall(r"\bLDGSTS[.\w]*", sass)]
    return CompiledKernel(
        name=kernel.metadata.name,
        registers=sizes["REG"],
        stack=sizes["STACK"],
        local=sizes["LOCAL"],
        spills=len(re.findall(_SPILL, sass)),
        inner_spills=sum(len(re.findall(_SPILL, loop)) for loop in _innermost_loops(sass)),
        shared=kernel.metadata.shared,
        num_warps=kernel.metadata.num_warps,
        copies={width: copies.count(width) for width in sorted(set(copies))},
        mma=len(re.findall(r"\b(?:HMMA|QMMA)\b", sass)),
        wgmma=len(re.findall(r"\b(?:HGMMA|QGMMA)\b|\bUTC\w*MMA\b", sass)),
        ttgir=kernel.asm["ttgir"],
        sass=sass,
    )


def _innermost_loops(sass):
    """Text between a label and a branch back to it, where no other such branch lies between."""
    labels = {match[1]: match.start() for match in re.finditer(r"^(\.L_x_\d+):", sass, re.MULTILINE)}
    branches = [(match.start(), match[1]) for match in re.finditer(r"\bBRA\b[^;]*\((\.L_x_\d+)\)", sass)]
    loops = [(labels[label], end) for end, label in branches if labels[label] < end]
    for begin, end in loops:
        if not any(begin <= other_begin and other_end < end for other_begin, other_end in loops):
            yield sass[begin:end]


def _copy_width(instruction):
    """Bytes a thread: LDGSTS.E.BYPASS.128 copies 16, LDGSTS.E 4."""
    parts = instruction.split(".")
    return next((int(part) // 8 for part in parts if part in ("64", "128")), 4)


def _tool(name, *arguments):
    return subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout
