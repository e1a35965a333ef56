import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.kernels.cache_folder import LANGUAGE_FOLDER, VARIABLE, cache_folder

_PRINT = "import os; from octavo.kernels import language; print(os.environ['TRITON_CACHE_DIR'])"


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """The variables that say where kernels are kept, for a user whose cache folder is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache_folder.cache_clear()
    yield monkeypatch
    cache_folder.cache_clear()


def test_the_users_cache_folder_is_the_default(environment, tmp_path):
    assert cache_folder() == tmp_path / "user/octavo"
    assert cache_folder().stat().st_mode & 0o777 == 0o700


def test_the_folder_named_is_made_and_used(environment, tmp_path):
    environment.setenv(VARIABLE, str(tmp_path / "a/b"))
    assert cache_folder() == tmp_path / "a/b"
    assert cache_folder().is_dir()


def read_only(environment, folder):
    """Also for root, who may write to every folder."""
    real = Path.mkdir

    def mkdir(path, *args, **settings):
        if path == folder:
            raise PermissionError("read-only file system")
        real(path, *args, **settings)

    environment.setattr(Path, "mkdir", mkdir)


def test_of_a_named_folder_that_cannot_be_written_everything_can_be_read_and_new_kernels_have_a_place(
    environment, tmp_path
):
    named = tmp_path / "named"
    (named / LANGUAGE_FOLDER / "KEY").mkdir(parents=True)
    (named / LANGUAGE_FOLDER / "KEY/kernel.cubin").write_text("compiled")
    (named / "kernels-1.so").write_text("library")
    environment.setenv(VARIABLE, str(named))
    read_only(environment, named)
    folder = cache_folder()
    assert folder != named
    assert (folder / "kernels-1.so").read_text() == "library"
    assert (folder / LANGUAGE_FOLDER / "KEY/kernel.cubin").read_text() == "compiled"
    (folder / LANGUAGE_FOLDER / "OTHER").mkdir()
    assert not (named / LANGUAGE_FOLDER / "OTHER").exists()
    assert cache_folder() == folder


def test_a_named_folder_that_is_neither_there_nor_can_be_made_is_no_obstacle(environment, tmp_path):
    environment.setenv(VARIABLE, str(tmp_path / "named"))
    read_only(environment, tmp_path / "named")
    assert list(cache_folder().iterdir()) == [cache_folder() / LANGUAGE_FOLDER]


def test_somebody_elses_folder_is_used_only_when_it_is_named(environment, tmp_path):
    environment.setattr("os.geteuid", lambda: os.getuid() + 1)
    assert cache_folder().parent == tmp_path
    assert cache_folder() != tmp_path / "user/octavo"
    cache_folder.cache_clear()
    environment.setenv(VARIABLE, str(tmp_path / "user/octavo"))
    assert cache_folder() == tmp_path / "user/octavo"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TRITON_CACHE_DIR": "chosen"}, "chosen"),
        ({"TRITON_CACHE_DIR": "chosen", VARIABLE: "named"}, "named/triton"),
    ],
)
def test_the_language_is_told_the_folder_before_it_is_imported(tmp_path, variables, expected):
    variables = {"XDG_CACHE_HOME": "user"} | variables
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_CACHE_DIR", VARIABLE)}
    env |= {name: str(tmp_path / value) for name, value in variables.items()}
    command = [sys.executable, "-c", _PRINT]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.strip()
    assert printed == str(tmp_path / expected)
