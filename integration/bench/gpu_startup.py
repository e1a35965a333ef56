"""Stage 10: from the start of a process to the first token, of 16 GB of weights in the page cache. About 150 s.

Part of it goes into writing them, once; it is no less with --quick. The checkpoint has the shape of Llama-3.1-8B and
random numbers, and stays in the temporary folder for the next run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from math import nan
from pathlib import Path
from time import monotonic, perf_counter

import gpu_checkpoint
from gpu_model import free_memory
from gpu_shapes import DRY_SETTINGS, SETTINGS
from gpu_targets import at_most
from gpu_timing import Bench, Row

_CHILD = Path(__file__).with_name("gpu_startup_process.py")
_LIMIT_S = 240
_SPARE_BYTES = 2 << 30


def run(bench: Bench) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) if bench.is_dry else Path(tempfile.gettempdir())
        folder = root / "octavo-bench-8b"
        free_memory(bench)
        yield bench.guarded({"start": "the checkpoint is written"}, lambda: prepare(bench, folder))
        kernels = Path(scratch) / "kernels"
        if not bench.is_dry:
            yield bench.guarded({"start": "kernels not compiled yet"}, lambda: start(bench, folder, kernels))
        row = bench.guarded({"start": "kernels compiled"}, lambda: start(bench, folder, kernels))
        yield row | at_most(row.get("total_s", nan), 15.0)


def prepare(bench: Bench, folder: Path) -> Row:
    """Writes the checkpoint unless it is there, and reads it once, so that it lies in the page cache."""
    needed = gpu_checkpoint.size_bytes(bench.is_dry)
    begin = perf_counter()
    is_new = not gpu_checkpoint.is_whole(folder, bench.is_dry)
    if is_new:
        free = shutil.disk_usage(folder.parent).free
        if free < needed + _SPARE_BYTES and not bench.is_dry:
            return {"skipped": f"{free / 1e9:.0f} GB are free in {folder.parent}"}
        gpu_checkpoint.write(folder, bench)
    written = perf_counter()
    gpu_checkpoint.read_through(folder)
    read = perf_counter()
    seconds = {"write_s": written - begin if is_new else nan, "read_s": read - written}
    return {"GB": needed / 1e9} | (dict.fromkeys(seconds, nan) if bench.is_dry else seconds)


def start(bench: Bench, folder: Path, kernels: Path) -> Row:
    """In a process of its own. Seconds from before it exists; phases as stats name them, and what is around them."""
    if not gpu_checkpoint.is_whole(folder, bench.is_dry):
        return {"skipped": "there is no checkpoint"}
    settings = (DRY_SETTINGS if bench.is_dry else SETTINGS) | {"device": bench.device.type, "model": str(folder)}
    env = os.environ | {"TRITON_CACHE_DIR": str(kernels)}
    # The same clock in all processes.
    begin = monotonic()
    done = subprocess.run(
        [sys.executable, str(_CHILD), json.dumps(settings)], capture_output=True, text=True, timeout=_LIMIT_S, env=env
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        return {"error": done.stderr[-500:]}
    found = json.loads(done.stdout.splitlines()[-1])
    row = {"total_s": found["first_token_at"] - begin, "interpreter_s": found["began_at"] - begin}
    row |= {f"{name.replace(' ', '_')}_s": seconds for name, seconds in found["phases"].items()}
    return dict.fromkeys(row, nan) if bench.is_dry else row
