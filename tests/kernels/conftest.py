import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_and_no_gradients():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
