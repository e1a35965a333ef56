"""Stage 0: the machine, and what it reaches by itself: copying memory and multiplying matrices.

These two rates, measured in the same run, are what every other stage's figures are fractions of.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata

import torch
from gpu_timing import Bench, Row

_QUERIES = (
    *("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem"),
    *("power.draw", "power.limit", "temperature.gpu"),
)
_COPY_SIZES = (64 << 20, 256 << 20, 1 << 30, 4 << 30, 8 << 30)
_MATMUL_SIZES = (2048, 4096, 8192)


def hardware(device: torch.device) -> Row:
    """What the measurements were taken on."""
    found: Row = {"host": platform.machine(), "gpu": None}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "state": gpu_state(),
        }
    return found


def gpu_state() -> dict[str, str]:
    """Driver, clocks, power and temperature at this moment; empty where nobody can be asked."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERIES)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_QUERIES, (part.strip() for part in answer.splitlines()[0].split(",")), strict=False))


def versions() -> Row:
    """Of what the measurements depend on; None where a package is missing."""
    found: Row = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def run(bench: Bench) -> Iterator[Row]:
    """The ceilings are those of the largest size."""
    for num_bytes in bench.pick(_COPY_SIZES, [1 << 12]):
        yield bench.guarded({"what": "copy", "size": f"{num_bytes / 2**20:g} MiB"}, lambda n=num_bytes: copy(bench, n))
    for size in bench.pick(_MATMUL_SIZES, [16]):
        yield bench.guarded({"what": "bf16 matmul", "size": f"{size}^3"}, lambda n=size: matmul(bench, n))
    if not bench.is_dry:
        yield {"what": "state under load"} | gpu_state()


def measure_ceilings(bench: Bench) -> None:
    """For a run of later stages alone. Takes about a second."""
    copy(bench, _COPY_SIZES[-1])
    matmul(bench, _MATMUL_SIZES[-1])


def copy(bench: Bench, num_bytes: int) -> Row:
    """From one buffer to another, as bytes read and written: by the driver, and by a kernel. The faster one counts."""
    free = torch.cuda.mem_get_info()[0] if bench.device.type == "cuda" else num_bytes * 4
    num_bytes = min(num_bytes, free // 4)
    source = bench.random(num_bytes // 2)
    target = torch.empty_like(source)
    timings = [bench.time([call]) for call in (lambda: target.copy_(source), lambda: torch.neg(source, out=target))]
    rates = [2 * num_bytes / timing.us * 1e6 for timing in timings]
    bench.copy_bytes_per_s = max(rates)
    return timings[0].columns | {"TB/s": rates[0] / 1e12, "TB/s by an operator": rates[1] / 1e12}


def matmul(bench: Bench, size: int) -> Row:
    """Square matrices of random numbers: zeros would take less power, and run faster."""
    left, right, out = (bench.random(size, size) for _ in range(3))
    timing = bench.time([lambda: torch.mm(left, right, out=out)] * (1 if bench.is_dry else 4))
    bench.flops_per_s = 2 * size**3 / timing.us * 1e6
    return timing.columns | {"TFLOP/s": bench.flops_per_s / 1e12}
