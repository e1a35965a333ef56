"""What the compiler makes of each kernel, on a machine without a GPU: registers, shared memory, the copies it uses.

A new kernel is a new line of GATE: a launch through its wrapper on meta tensors, and the limits of what it launches.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("triton")

from kernels.triton_support import SHARED_MEMORY_LIMIT, compiled_kernels

from octavo.kernels import language
from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.decode_inputs import decode_inputs
from octavo.kernels.decode_plan import DecodeCapacity, plan_decode
from octavo.kernels.paged_decode import ATTEND_PROGRAMS, COMBINE_PROGRAMS, paged_decode
from octavo.kernels.paged_prefill import PrefillRows, paged_prefill
from octavo.kernels.quantise_rows import quantise_rows_gpu
from octavo.kernels.sampling import SamplingScratch, sample
from octavo.kernels.sampling_tables import SamplingTables
from octavo.kernels.silu_and_mul import silu_and_mul_fp8_gpu

FP8 = torch.float8_e4m3fn
META = torch.device("meta")
NEWEST, ALL = (90,), (80, 90, 100)


@dataclass(frozen=True)
class Limits:
    """Of one kernel. copies: at least so many asynchronous copies of 16 bytes, and none narrower than `narrowest`.

    loads: at least so many 16-byte loads to registers. dots: tensor cores work. programs: at least so many fit on a
    multiprocessor of Hopper at once. spills: instructions that keep in memory what registers have no room for, outside
    of loops only.
    """

    registers: int = 255
    spills: int = 0
    copies: int = 0
    narrowest: int = 16
    loads: int = 0
    dots: bool = False
    programs: int = 1


@dataclass(frozen=True)
class Launch:
    """One call of a wrapper. Kernels without limits of their own must only not spill."""

    name: str
    call: Callable[[], object]
    sms: tuple[int, ...] = NEWEST
    limits: dict[str, Limits] = field(default_factory=dict)


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device=META)


def decode(heads, head_dim, dtype=torch.bfloat16, kv_dtype=None, offset=0, **settings):
    """heads: (num_heads, num_kv_heads). offset: how far behind an aligned address the cache begins, in numbers."""
    spec = AttentionSpec(head_dim**-0.5, **settings)
    scratch = DecodeCapacity(32, 32768, heads[0], head_dim).allocate([spec.window], META)
    shape = (1000, 2, heads[1], 16, head_dim)
    kv_cache = empty(torch.Size(shape).numel() + offset, dtype=kv_dtype or dtype)[offset:].view(shape)
    paged_decode(
        empty(32, heads[0], head_dim, dtype=dtype), kv_cache, empty(32, 2048, dtype=torch.int32), scratch, spec
    )


def decode_plan(num_rows, window):
    scratch = DecodeCapacity(num_rows, 32768, 32, 128).allocate([window], META)
    plan_decode(empty(num_rows, dtype=torch.int32), scratch)


def decode_limits(copies=48, **settings):
    attend = Limits(copies=copies, programs=ATTEND_PROGRAMS, **settings)
    return {"_attend_units": attend, "_combine_slots": Limits(programs=COMBINE_PROGRAMS)}


def prefill(head_dim, dtype=torch.bfloat16, kv_dtype=None, is_hopper=True, **settings):
    shapes = empty(9, 2048, dtype=torch.int32)
    rows = PrefillRows(shapes[:, 0], shapes[1:, 0], shapes[1:])
    kv_cache = empty(1000, 2, 8, 16, head_dim, dtype=kv_dtype or dtype)
    with patch.object(language, "shapes_capability", 90 if is_hopper else 80):
        paged_prefill(empty(4096, 32, head_dim, dtype=dtype), kv_cache, rows, AttentionSpec(0.1, **settings))


def prefill_limits(copies, **settings):
    return {"_prefill_kernel": Limits(copies=copies, dots=True, **settings)}


def sampler(dtype):
    num_rows, vocab_size = 128, 128256
    tables = SamplingTables.allocate(256, vocab_size, META)
    scratch = SamplingScratch.allocate(num_rows, vocab_size, META)
    positions = empty(num_rows, dtype=torch.int64)
    sample(empty(num_rows, vocab_size, dtype=dtype), tables, scratch, positions, empty(num_rows, dtype=torch.int32))


def fp8_rows(name, programs):
    """A row of 14,336 numbers: loaded at once, by half the threads of a multiprocessor or more."""
    return {name: Limits(64, loads=4, programs=programs)}


# Programs: enough on a multiprocessor at once, each with 16 KiB of loads on their way, to hide memory's latency.
SAMPLER = {
    "_edit_logits": Limits(96, loads=4, programs=4),
    "_reduce_chunks": Limits(64, loads=4, programs=4),
    "_draw_chunks": Limits(64, loads=4, programs=4),
    "_draw_truncated": Limits(240, loads=4),
    "finish_row": Limits(96, loads=4, programs=2),
}
LLAMA = (32, 8)
GATE = [
    Launch("decode 128", lambda: decode(LLAMA, 128), ALL, decode_limits(dots=True)),
    Launch("decode plan", lambda: decode_plan(256, None)),
    Launch("decode plan windowed", lambda: decode_plan(1, 4096)),
    Launch(
        "decode inputs",
        lambda: decode_inputs(*(empty(64, dtype=torch.int64),) * 2, empty(257, 2048, dtype=torch.int32), 16),
    ),
    Launch("decode 64", lambda: decode(LLAMA, 64), limits=decode_limits(dots=True)),
    Launch("decode 80", lambda: decode(LLAMA, 80), limits=decode_limits(dots=True)),
    Launch("decode 96 windowed", lambda: decode(LLAMA, 96, window=4096), limits=decode_limits(dots=True)),
    Launch("decode 256 capped", lambda: decode((8, 4), 256, soft_cap=50.0), limits=decode_limits(dots=True)),
    Launch(
        "decode 128 fp8",
        lambda: decode(LLAMA, 128, kv_dtype=FP8),
        limits=decode_limits(copies=16, narrowest=8, dots=True),
    ),
    Launch(
        "decode 80 fp8",
        lambda: decode(LLAMA, 80, kv_dtype=FP8),
        limits=decode_limits(copies=16, narrowest=8, dots=True, spills=8),
    ),
    Launch(
        "decode 256 fp8",
        lambda: decode((8, 4), 256, kv_dtype=FP8),
        limits=decode_limits(copies=16, narrowest=8, dots=True, spills=2),
    ),
    Launch("decode 128 fp32", lambda: decode(LLAMA, 128, torch.float32), limits=decode_limits()),
    Launch("prefill 128", lambda: prefill(128), limits=prefill_limits(96)),
    Launch("prefill 64", lambda: prefill(64), limits=prefill_limits(48, programs=2)),
    Launch("prefill 64 both ways", lambda: prefill(64, causal=False), limits=prefill_limits(48, programs=2)),
    Launch("prefill 96 windowed", lambda: prefill(96, window=4096), limits=prefill_limits(144)),
    Launch("prefill 256 capped", lambda: prefill(256, soft_cap=50.0), limits=prefill_limits(64)),
    Launch("prefill 128 fp8", lambda: prefill(128, kv_dtype=FP8), limits=prefill_limits(48, spills=4)),
    Launch("prefill 128 fp32", lambda: prefill(128, torch.float32), limits=prefill_limits(32)),
    Launch("prefill 128 elsewhere", lambda: prefill(128, is_hopper=False), (80, 100), prefill_limits(32)),
    Launch("prefill 256 elsewhere", lambda: prefill(256, is_hopper=False), (80,), prefill_limits(32)),
    Launch("sampler fp32", lambda: sampler(torch.float32), ALL, SAMPLER),
    Launch("sampler bf16", lambda: sampler(torch.bfloat16), limits=SAMPLER),
    Launch("fp8 rows", lambda: quantise_rows_gpu(empty(64, 14336)), (90, 100), fp8_rows("_quantise_rows_kernel", 2)),
    Launch(
        "fp8 silu",
        lambda: silu_and_mul_fp8_gpu(empty(64, 28672)),
        (90, 100),
        fp8_rows("_silu_and_mul_fp8_kernel", 2),
    ),
]

CASES = [pytest.param(launch, sm, id=f"{launch.name} sm_{sm}") for launch in GATE for sm in launch.sms]


def check(kernel, limits, sm):
    assert kernel.inner_spills == 0
    assert kernel.spills <= limits.spills
    assert limits.spills or kernel.stack == kernel.local == 0
    assert kernel.shared <= SHARED_MEMORY_LIMIT[sm]
    assert kernel.registers <= limits.registers
    assert kernel.copies.get(16, 0) >= limits.copies
    assert not limits.copies or min(kernel.copies) >= limits.narrowest
    assert kernel.sass.count("LDG.E.128") >= limits.loads
    assert not limits.dots or kernel.mma + kernel.wgmma
    assert sm != 90 or kernel.programs_per_sm(sm) >= limits.programs
    # Products of four warps that the assembler serialises begin one by one, not several at a time.
    assert sm != 90 or 2 * kernel.sass.count("WARPGROUP.ARRIVE") <= kernel.wgmma


@pytest.mark.slow
@pytest.mark.parametrize(("launch", "sm"), CASES)
def test_kernels_compile_to_what_they_were_written_for(launch, sm):
    kernels = compiled_kernels(sm, launch.call)
    assert launch.limits.keys() <= {kernel.name for kernel in kernels}
    for kernel in kernels:
        check(kernel, launch.limits.get(kernel.name, Limits()), sm)


@pytest.mark.slow
def test_the_gate_sees_a_cache_whose_alignment_the_compiler_does_not_know():
    attend = compiled_kernels(90, lambda: decode(LLAMA, 128, offset=1))[0]
    assert attend.name == "_attend_units"
    with pytest.raises(AssertionError, match="copies"):
        check(attend, decode_limits()["_attend_units"], 90)
