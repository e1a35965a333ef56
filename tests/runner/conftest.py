import pytest
import torch
from models.tiny_models import make_tiny_model
from runner.row_driver import RowDriver

from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig, resolve
from octavo.runner import create_executor

BLOCK_SIZE = 4
MAX_NUM_SEQS = 40


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """(folder, transformers model) of a random two-layer Llama with 512 tokens and a context of 256."""
    folder = tmp_path_factory.mktemp("runner_llama")
    return folder, make_tiny_model("llama", folder)


@pytest.fixture(scope="session")
def make_runner(tiny_llama):
    def make(**settings):
        defaults = {
            "dtype": "float32",
            "block_size": BLOCK_SIZE,
            "max_num_seqs": MAX_NUM_SEQS,
            "num_threads": 1,
            "num_gpu_blocks_override": 600,
        }
        checkpoint = open_checkpoint(tiny_llama[0])
        config = resolve(EngineConfig(**(defaults | settings)), checkpoint)
        return create_executor(config, checkpoint, lambda phase, fraction: None)

    return make


@pytest.fixture(scope="session")
def shared_runner(make_runner):
    before = torch.get_num_threads()
    yield make_runner()
    torch.set_num_threads(before)


@pytest.fixture
def driver(shared_runner):
    """A driver over an empty runner; what it leaves running is removed afterwards."""
    made = RowDriver(shared_runner, BLOCK_SIZE, MAX_NUM_SEQS)
    yield made
    for name in list(made.running):
        made.remove(name)
    made.step({})


@pytest.fixture
def plain_logprobs(tiny_llama):
    """token ids -> fp32 log_softmax [n, vocab] of one plain forward through transformers."""

    def forward(token_ids):
        with torch.inference_mode():
            return tiny_llama[1](torch.tensor([token_ids])).logits[0].float().log_softmax(-1)

    return forward
