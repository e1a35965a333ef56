import pytest
import torch
from models.tiny_models import make_tiny_model

from octavo.checkpoint import open_checkpoint
from octavo.models import load_model


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """name -> (folder, transformers model), each made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = (folder, make_tiny_model(name, folder))
        return made[name]

    return make


@pytest.fixture
def load():
    def load(path, dtype=torch.float32):
        return load_model(open_checkpoint(path), dtype, torch.device("cpu"), lambda phase, fraction: None)

    return load
