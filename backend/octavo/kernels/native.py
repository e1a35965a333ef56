"""The C kernels of this folder: compiled by the system's compiler at first use, kept in cache_folder.py's folder.

Where that is impossible (or OCTAVO_NATIVE=0) `library` is None and the callers' PyTorch references run instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from octavo.kernels import language
from octavo.kernels.cache_folder import cache_folder

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-pthread")
_COMPILE_TIMEOUT_S = 300.0

# Takes a pointer to the operation's struct.
Function = Callable[[object], int]

num_fallbacks = 0
"""How often a reference ran where a C kernel exists for the device and type."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None. Warns once when they should be there and are not."""
    if os.environ.get("OCTAVO_NATIVE") == "0":
        return None
    try:
        return ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        logger.warning("the C kernels could not be compiled (%s): slower PyTorch operators run instead", detail)
        return None


def function(name: str, tensor: Tensor) -> Function | None:
    """The C function `name` if it takes tensors like this one, else None; counts a fallback if only it is missing."""
    if language.on_gpu(tensor) or tensor.dtype not in (torch.bfloat16, torch.float32):
        return None
    kernels = library()
    if kernels is None:
        global num_fallbacks
        num_fallbacks += 1
        return None
    return _function(kernels, name)


@cache
def _function(kernels: ctypes.CDLL, name: str) -> Function:
    found = kernels[name]
    found.argtypes = (ctypes.c_void_p,)
    return found


def _compiled() -> Path:
    """The shared library for these sources, flags, compiler and CPU; compiles it where the cache has none."""
    compiler = os.environ.get("CC", "cc")
    sources = sorted([*_FOLDER.glob("*.c"), *_FOLDER.glob("*.h")])
    version = _run([compiler, "--version"])
    key = hashlib.sha256(repr((_FLAGS, version, _cpu())).encode())
    for source in sources:
        key.update(source.read_bytes())
    target = cache_folder() / f"kernels-{key.hexdigest()[:24]}.so"
    if not target.exists():
        # Compiled beside the target and renamed: whoever comes second at the same time replaces equal by equal.
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            output = Path(folder) / target.name
            _compile(compiler, [source for source in sources if source.suffix == ".c"], output)
            output.replace(target)
    return target


def _compile(compiler: str, sources: list[Path], output: Path) -> None:
    objects = [str(output.parent / f"{source.stem}.o") for source in sources]
    compile_only = [
        [compiler, *_FLAGS, "-c", str(source), "-o", file] for source, file in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, compile_only))
    _run([compiler, *_FLAGS, "-shared", "-o", str(output), *objects, "-lm"])


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_COMPILE_TIMEOUT_S)
    return result.stdout


def _cpu() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
