import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_and_no_gradients():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


@pytest.fixture
def outputs_begin_as_nan():
    """Of operations that allocate them uninitialised."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
