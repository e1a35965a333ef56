import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from octavo.kernels import native
from octavo.kernels.cache_folder import cache_folder
from octavo.kernels.silu_and_mul import silu_and_mul, silu_and_mul_reference

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
_LOAD = "from octavo.kernels import native; print(native.library() is not None)"


@pytest.fixture
def fresh_native(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    cache_folder.cache_clear()
    yield native
    native.library.cache_clear()
    cache_folder.cache_clear()


@pytest.fixture
def hasty_compiler(monkeypatch, tmp_path):
    """The system's, told not to optimise: what it makes need only be there."""
    script = tmp_path / "hasty_cc"
    script.write_text('#!/bin/sh\nexec cc "$@" -O0\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))


@needs_compiler
def test_only_one_openmp_runtime_is_in_the_process():
    assert native.library() is not None
    silu_and_mul(torch.ones(4, 1 << 16))
    maps = Path("/proc/self/maps").read_text()
    assert len(set(re.findall(r"/\S*lib[gi]?omp\S*", maps))) == 1


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("hasty_compiler")
def test_processes_that_compile_at_the_same_time_all_succeed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs = [subprocess.Popen([sys.executable, "-c", _LOAD], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate(timeout=120)[0].strip() for run in runs] == ["True"] * 2
    assert len(list((tmp_path / "octavo").iterdir())) == 1


@pytest.mark.parametrize("how", ["switched off", "no compiler", "broken compiler"])
def test_without_a_library_references_run_and_are_counted(fresh_native, monkeypatch, caplog, how):
    if how == "switched off":
        monkeypatch.setenv("OCTAVO_NATIVE", "0")
    else:
        monkeypatch.setenv("CC", "/no/such/compiler" if how == "no compiler" else "false")
    before = fresh_native.num_fallbacks
    x = torch.randn(3, 40)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(silu_and_mul(x), silu_and_mul_reference(x))
    assert fresh_native.num_fallbacks == before + 2
    assert len(caplog.records) == (0 if how == "switched off" else 1)


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("hasty_compiler")
def test_a_cache_folder_that_cannot_be_written_is_no_obstacle(fresh_native, monkeypatch, tmp_path):
    (tmp_path / "octavo").write_text("in the way")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert fresh_native.library() is not None


def test_types_without_a_kernel_are_no_fallback():
    before = native.num_fallbacks
    x = torch.randn(3, 40).half()
    assert torch.equal(silu_and_mul(x), silu_and_mul_reference(x))
    assert native.num_fallbacks == before
