"""A small BERT of random weights: its vectors on the CPU, by a GPU's kernels, and where numbers are not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import BertConfig
from transformers import BertModel as TheirBert

from octavo.checkpoint import Checkpoint, open_checkpoint
from octavo.config import EngineConfig, resolve
from octavo.engine import Engine
from octavo.errors import ModelLoadError
from octavo.models import load_model
from octavo.models.bert import BertModel
from octavo.outputs import FinishReason
from octavo.pooling import Pooling, PoolingKind
from octavo.request import EngineRequest
from octavo.runner import create_executor_for, dtype_of
from octavo.sampling_params import SamplingParams

CPU = torch.device("cpu")
MEAN = Pooling(PoolingKind.MEAN, normalize=False)
PROMPTS = [[5], [1, 2], list(range(3, 20)), list(range(70, 6, -1)), [9] * 33]


@pytest.fixture(scope="module")
def their_bert() -> TheirBert:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=48, num_hidden_layers=2, num_attention_heads=2, intermediate_size=88,
        max_position_embeddings=64, initializer_range=0.3, architectures=["BertModel"],
    )  # fmt: skip
    return TheirBert(config).eval()


@pytest.fixture(scope="module")
def checkpoint(their_bert: TheirBert, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder: Path = tmp_path_factory.mktemp("bert")
    their_bert.save_pretrained(folder)
    return open_checkpoint(folder)


@pytest.fixture
def make_encoder(checkpoint: Checkpoint) -> Callable[..., Engine]:
    torch.set_num_threads(1)

    def make(dtype: torch.dtype = torch.float32, **settings: object) -> Engine:
        settings = {"block_size": 8, "max_num_seqs": 8} | settings
        config = resolve(EngineConfig(**settings), checkpoint)  # type: ignore[arg-type]
        model = load_model(checkpoint, dtype, CPU, lambda phase, fraction: None)
        return Engine(config, create_executor_for(model, config, CPU, dtype), is_encoder=True)

    return make


def vectors(engine: Engine, prompts: list[list[int]] = PROMPTS, pooling: Pooling = MEAN) -> list[np.ndarray]:
    for i, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=1)
        request = EngineRequest(request_id=str(i), prompt_token_ids=prompt, params=params, seed=0, pooling=pooling)
        engine.add_request(request)
    found = {}
    while engine.has_work:
        found |= {output.request_id: output for output in engine.step()}
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    return [np.frombuffer(found[str(i)].embedding, "<f4") for i in range(len(prompts))]


def states(their_bert: TheirBert, prompt: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return their_bert(torch.tensor([prompt])).last_hidden_state[0].numpy()


@pytest.mark.parametrize("kind", [PoolingKind.MEAN, PoolingKind.CLS, PoolingKind.LAST])
def test_vectors_equal_those_of_transformers(make_encoder, their_bert, kind) -> None:
    pick = {PoolingKind.MEAN: lambda h: h.mean(0), PoolingKind.CLS: lambda h: h[0], PoolingKind.LAST: lambda h: h[-1]}
    for prompt, vector in zip(PROMPTS, vectors(make_encoder(), pooling=Pooling(kind, False)), strict=True):
        np.testing.assert_allclose(vector, pick[kind](states(their_bert, prompt)), rtol=0, atol=2e-5)


def test_fewer_dimensions_are_cut_before_they_are_normalised(make_encoder, their_bert) -> None:
    (vector,) = vectors(make_encoder(), [PROMPTS[2]], Pooling(PoolingKind.MEAN, True, dimensions=7))
    mean = states(their_bert, PROMPTS[2]).mean(0)[:7]
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"block_size": 16, "max_num_seqs": 2}, {"async_scheduling": True}])
def test_batches_and_blocks_do_not_change_a_bit(make_encoder, dtype, settings) -> None:
    together = vectors(make_encoder(dtype, **settings), PROMPTS * 4)
    engine = make_encoder(dtype)
    for place, prompt in enumerate(PROMPTS * 4):
        assert vectors(engine, [prompt])[0].tobytes() == together[place].tobytes()


def test_a_gpus_kernels_give_the_same(make_encoder) -> None:
    pytest.importorskip("triton")
    from kernels.triton_support import interpreted

    expected = vectors(make_encoder())
    with interpreted(), np.errstate(all="ignore"), patch("octavo.kernels.language.on_gpu", lambda tensor: True):
        found = vectors(make_encoder())
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-5)


def test_numbers_that_are_not_finite_fail_their_request_alone(make_encoder) -> None:
    engine = make_encoder()
    model: BertModel = engine.executor._model
    with torch.inference_mode():
        model.words.table[99] = float("inf")
    for name, prompt in (("bad", [1, 99, 2]), ("good", [1, 2, 3])):
        params = SamplingParams(max_tokens=1)
        engine.add_request(EngineRequest(request_id=name, prompt_token_ids=prompt, params=params, seed=0, pooling=MEAN))
    found = {output.request_id: output for output in engine.step()}
    assert found["bad"].finish_reason is FinishReason.ERROR
    assert "finite" in found["bad"].error
    assert found["good"].embedding == vectors(make_encoder(), [[1, 2, 3]])[0].tobytes()


def test_an_encoder_that_names_no_dtype_is_float32(checkpoint: Checkpoint) -> None:
    unnamed = Checkpoint(checkpoint.path, {"architectures": ["BertModel"], "vocab_size": 8}, {}, ())
    for device in ("cpu", "cuda"):
        assert dtype_of(EngineConfig(), unnamed, torch.device(device)) == torch.float32


def test_blocks_are_for_the_prompts_of_two_steps(checkpoint: Checkpoint) -> None:
    config = resolve(EngineConfig(block_size=8, max_num_seqs=4, max_num_batched_tokens=100), checkpoint)
    assert config.num_gpu_blocks_override == 2 * (13 + 4) + 1
    asked = resolve(EngineConfig(num_gpu_blocks_override=77), checkpoint)
    assert asked.num_gpu_blocks_override == 77
    assert resolve(EngineConfig(kv_cache_memory_bytes=1 << 20), checkpoint).num_gpu_blocks_override is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "relu"),
        ("position_embedding_type", "relative_key"),
        ("num_attention_heads", 5),
        ("is_decoder", True),
        ("add_cross_attention", True),
    ],
)
def test_a_shape_that_is_not_supported_is_refused_by_name(checkpoint: Checkpoint, key: str, value: object) -> None:
    with pytest.raises(ModelLoadError, match=f"config.json: .*{key.split('_')[-1]}"):
        BertModel.read_spec(checkpoint.config | {key: value})


def test_weights_that_the_config_does_not_explain_are_refused(checkpoint: Checkpoint) -> None:
    shorter = Checkpoint(checkpoint.path, checkpoint.config | {"num_hidden_layers": 1}, {}, checkpoint.weight_files)
    with pytest.raises(ModelLoadError, match=r"encoder\.layer\.1\."):
        load_model(shorter, torch.float32, CPU, lambda phase, fraction: None)
