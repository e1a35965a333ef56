"""Installs the peers, each in a virtual environment of its own, and converts the embedded model for them, once.

What is exactly installed stands in peer_locks/; llama.cpp is built from the source that its Python bindings carry.
Knows nothing of what is measured.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.checkpoint import default_model
from octavo.errors import OctavoError

HERE = Path(__file__).parent
LOCKS = HERE / "peer_locks"
LLAMA_BINDINGS = "llama_cpp_python"
LLAMA_VERSION = "0.3.36"
BUILD_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF",
)  # fmt: skip
# The folder of a model -> what llama-quantize, or OpenVINO's exporter, calls its type.
LLAMA_TYPES = {"llama-bf16": "BF16", "llama-int8": "Q8_0"}
# Groups that divide the model's rows.
OPENVINO_TYPES = {
    "openvino-bf16": ("fp16",),
    "openvino-int8": ("int8",),
    "openvino-4bit": ("int4", "--group-size", "64"),
}


@dataclass(frozen=True, slots=True)
class Peers:
    """Where everything lies."""

    folder: Path

    def python(self, environment: str) -> Path:
        """The interpreter of an environment."""
        return self.folder / environment / "bin/python"

    def model(self, name: str) -> Path:
        """A converted model: a folder, or a GGUF file for llama.cpp."""
        return self.folder / "models" / (f"{name}.gguf" if name.startswith("llama-") else name)

    @property
    def llama_binaries(self) -> Path:
        """The folder of llama.cpp's programs."""
        return self.folder / f"llama/{LLAMA_BINDINGS}-{LLAMA_VERSION}/vendor/llama.cpp/build/bin"


def install(peers: Peers, environments: Sequence[str], told: Callable[[str], None]) -> dict[str, str]:
    """Installs what is not there yet; what could not be installed, and why."""
    missing: dict[str, str] = {}
    peers.folder.mkdir(parents=True, exist_ok=True)
    shared = [] if set(environments) <= {"llama"} else ["model"]
    for name in [*shared, *environments]:
        steps = {"model": _install_model, "llama": _install_llama}.get(name)
        try:
            told(f"installing {name}")
            if steps is not None:
                steps(peers)
            else:
                _install_environment(peers, name)
        except (OSError, subprocess.CalledProcessError, tarfile.TarError, OctavoError) as error:
            missing[name] = _reason(peers, name, error)
    if "model" in missing:
        missing |= {name: f"no converted model: {missing['model']}" for name in environments if name != "llama"}
    missing.pop("model", None)
    return missing


def _install_environment(peers: Peers, name: str) -> None:
    lock = LOCKS / f"{name}.txt"
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()
    ready = peers.folder / name / ".ready"
    if not ready.exists() or ready.read_text() != digest:
        shutil.rmtree(peers.folder / name, ignore_errors=True)
        _run(peers, name, sys.executable, "-m", "venv", peers.folder / name)
        # The lock names everything; the resolver would look for what has no build for a CPU, and is not needed.
        _run(peers, name, peers.python(name), "-m", "pip", "install", "--no-deps", "-r", lock)
        ready.write_text(digest)
    for model, weights in OPENVINO_TYPES.items() if name == "openvino" else ():
        command = [peers.folder / name / "bin/optimum-cli", "export", "openvino", "--model", peers.model("bf16")]
        command += ["--task", "text-generation-with-past", "--weight-format", *weights]
        _make(peers, name, peers.model(model), *command)


def _install_model(peers: Peers) -> None:
    _make(peers, "model", peers.model("bf16"), sys.executable, HERE / "peer_convert.py")


def _install_llama(peers: Peers) -> None:
    folder = peers.folder / "llama"
    source = peers.llama_binaries.parent.parent
    if not (peers.llama_binaries / "llama-server").exists():
        download = ["download", "--no-deps", "--no-binary", LLAMA_BINDINGS, "-d", folder]
        archive = folder / f"{LLAMA_BINDINGS}-{LLAMA_VERSION}.tar.gz"
        if not archive.exists():
            _run(peers, "llama", sys.executable, "-m", "pip", *download, f"{LLAMA_BINDINGS}=={LLAMA_VERSION}")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        _run(peers, "llama", "cmake", "-S", source, "-B", source / "build", *BUILD_OPTIONS)
        targets = ["--target", "llama-server", "llama-quantize"]
        _run(peers, "llama", "cmake", "--build", source / "build", "--parallel", os.cpu_count() or 1, *targets)
    peers.model("bf16").parent.mkdir(exist_ok=True)
    for model, weights in LLAMA_TYPES.items():
        file = peers.model(model)
        part = file.with_suffix(".part")
        if not file.exists():
            quantize = peers.llama_binaries / "llama-quantize"
            _run(peers, "llama", quantize, "--allow-requantize", default_model(), part, weights)
            part.rename(file)


def _make(peers: Peers, log: str, folder: Path, *command: object) -> None:
    """Runs a command whose last argument is the folder that it fills, unless that has been done."""
    part = folder.with_name(f"{folder.name}.part")
    if not folder.exists():
        shutil.rmtree(part, ignore_errors=True)
        part.parent.mkdir(exist_ok=True)
        _run(peers, log, *command, part)
        part.rename(folder)


def _run(peers: Peers, log: str, *command: object) -> None:
    # A peer's tools see their own packages only, and look nothing up in a hub.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    with (peers.folder / f"{log}.log").open("ab") as output:
        subprocess.run(
            [str(part) for part in command], stdout=output, stderr=subprocess.STDOUT, env=environment, check=True
        )


def _reason(peers: Peers, name: str, error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = (peers.folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return f"{Path(error.cmd[0]).name} failed: {lines[-1] if lines else 'no message'}"
    return str(error)
