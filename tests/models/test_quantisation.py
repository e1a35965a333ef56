"""FP8 weights and KV caches in whole models: by the references on CPU, and by the GPU's kernels, interpreted."""

import importlib
import json
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from models.driver import Driver, random_tokens
from safetensors.torch import load_file, save_file

from octavo.checkpoint import open_checkpoint
from octavo.config import QUANTIZATIONS
from octavo.errors import ModelLoadError
from octavo.kernels.quantise_rows import FP8
from octavo.kernels.scaled_mm import scaled_mm_reference
from octavo.layers.norm import RMSNorm, RMSNormFp8
from octavo.models import load_model
from octavo.models.config import Quantisation
from octavo.quant import SCHEMES, quantise

pytestmark = pytest.mark.slow

TOKENS = random_tokens(40)
# A number in FP8 is off by up to so much of itself.
HALF_STEP = 2**-4
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def load(folder, dtype=torch.float32, **quantisation):
    checkpoint = open_checkpoint(folder)
    return load_model(checkpoint, dtype, torch.device("cpu"), lambda *_: None, Quantisation(**quantisation))


def logits_of(model, dtype=torch.float32, chunk_size=40):
    return Driver(model, dtype).run("a", TOKENS, chunk_size)


def relative_error(got, wanted):
    """Root mean square of the difference over that of `wanted`."""
    return float((got - wanted).norm() / wanted.norm())


def sensitivity(folder, target, projections):
    """The relative error of the logits when each number of these weights is off by FP8's rounding, at random."""
    generator = torch.Generator().manual_seed(0)

    def off(name, tensor):
        if name.split(".")[-2] not in projections or tensor.dim() != 2:
            return tensor
        return tensor * (1 + HALF_STEP * (2 * torch.rand(tensor.shape, generator=generator) - 1))

    tensors = load_file(folder / "model.safetensors")
    with_tensors(folder, target, **{name: off(name, tensor) for name, tensor in tensors.items()})
    return relative_error(logits_of(load(target)), logits_of(load(folder)))


def with_tensors(folder, target, **tensors):
    (target / "config.json").write_text((folder / "config.json").read_text())
    save_file(load_file(folder / "model.safetensors") | tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize("name", ["llama", "llama_tied_bias", "qwen2", "qwen3", "mistral_swa"])
def test_a_model_with_fp8_weights_is_near_the_one_without(tiny, tmp_path, name):
    folder, _ = tiny(name)
    error = relative_error(logits_of(load(folder, weights="fp8")), logits_of(load(folder)))
    # Both operands of each product are off, which is 2**0.5 of one.
    assert 0 < error < 2**0.5 * sensitivity(folder, tmp_path, PROJECTIONS)


@pytest.mark.parametrize("name", ["llama", "qwen3_swa"])
def test_a_model_with_an_fp8_cache_is_near_the_one_without(tiny, tmp_path, name):
    folder, _ = tiny(name)
    error = relative_error(logits_of(load(folder, fp8_kv_cache=True), FP8), logits_of(load(folder)))
    # Keys that are off by so much are what weights that are off by so much make.
    assert 0 < error < sensitivity(folder, tmp_path, ("k_proj", "v_proj"))


def test_products_are_quantised_and_the_embedding_and_the_head_are_not(tiny):
    model = load(tiny("llama")[0], weights="fp8")
    assert model.embedding.table.dtype == torch.float32
    assert model.lm_head.quantised is None
    for layer in model.layers:
        for linear in (layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down):
            assert linear.quantised.rows.data.dtype == FP8
        assert isinstance(layer.attention_norm, RMSNormFp8)
        assert isinstance(layer.mlp_norm, RMSNormFp8)


def test_a_weight_that_fp8_products_cannot_take_stays_as_it_is(tiny, tmp_path):
    folder, _ = tiny("llama")
    tensors = load_file(folder / "model.safetensors")
    for layer in range(2):
        for name, dim in (("gate", 0), ("up", 0), ("down", 1)):
            name = f"model.layers.{layer}.mlp.{name}_proj.weight"
            tensors[name] = tensors[name].narrow(dim, 0, 100).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}))
    model = load(tmp_path, weights="fp8")
    layer = model.layers[0]
    assert layer.attention.qkv.takes_fp8
    assert not layer.mlp.gate_up.takes_fp8
    assert isinstance(layer.mlp_norm, RMSNorm)
    (tmp_path / "off").mkdir()
    error = relative_error(logits_of(model), logits_of(load(tmp_path)))
    assert 0 < error < 2**0.5 * sensitivity(tmp_path, tmp_path / "off", PROJECTIONS[:4])


@pytest.mark.parametrize("spelling", ["{}_scale", "attn.{}_scale", "{0}_proj.{0}_scale"])
def test_scales_that_a_checkpoint_brings_are_those_of_its_fp8_cache(tiny, tmp_path, spelling):
    scales = {
        f"model.layers.{layer}.self_attn.{spelling.format(part)}": torch.tensor(scale)
        for layer in range(2)
        for part, scale in (("k", 0.25), ("v", 0.5))
    }
    folder = with_tensors(tiny("llama")[0], tmp_path, **scales)
    model = load(folder, fp8_kv_cache=True)
    for layer in model.layers:
        assert (layer.attention.spec.k_scale, layer.attention.spec.v_scale) == (0.25, 0.5)
        assert (layer.attention.form.k_scale, layer.attention.form.v_scale) == (0.25, 0.5)
    # Powers of two move no rounding, but for numbers below 2**-6: those are off by up to 2**-10 either way.
    unscaled = logits_of(load(tiny("llama")[0], fp8_kv_cache=True), FP8)
    assert 0 < relative_error(logits_of(model, FP8), unscaled) < 2**-9
    assert torch.equal(logits_of(load(folder)), logits_of(load(tiny("llama")[0])))


@pytest.mark.parametrize("scale", [[0.0], [-1.0], [float("nan")], [float("inf")], [1.0, 2.0]])
def test_a_scale_that_is_none_is_named(tiny, tmp_path, scale):
    name = "model.layers.1.self_attn.k_scale"
    folder = with_tensors(tiny("llama")[0], tmp_path, **{name: torch.tensor(scale)})
    with pytest.raises(ModelLoadError, match=name):
        load(folder, fp8_kv_cache=True)


def test_every_scheme_is_a_setting_and_makes_a_weight():
    assert set(SCHEMES) == set(QUANTIZATIONS) - {"gguf"}
    for scheme in SCHEMES:
        weight = quantise(scheme, [torch.ones(32, 64), torch.ones(16, 64)])
        torch.testing.assert_close(weight.multiply(torch.ones(3, 64), None, None), torch.full((3, 48), 64.0))
        assert quantise(scheme, [torch.ones(16, 3)]) is None


def steps(model, kv_dtype):
    """Logits of two prompts, of a decode row beside a chunk, then of two decode rows, in one cache."""
    driver = Driver(model, kv_dtype)
    rows_of_steps = [
        [("a", TOKENS[:18], 0), ("b", TOKENS[20:25], 0)],
        [("a", TOKENS[18:19], 18), ("b", TOKENS[25:28], 5)],
        [("a", TOKENS[19:20], 19), ("b", TOKENS[28:29], 8)],
    ]
    return torch.cat([logits for rows in rows_of_steps for logits in driver.step(rows)])


@contextmanager
def gpu_path():
    """The GPU's way on CPU tensors: its kernels in the interpreter, torch's FP8 product as torch has it for CPUs."""
    pytest.importorskip("triton")
    on_gpu = patch("octavo.kernels.language.on_gpu", lambda tensor: True)
    with on_gpu, importlib.import_module("kernels.triton_support").interpreted(), np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize(
    ("name", "weights", "kv_dtype"),
    [
        ("qwen3_swa", None, torch.float32),
        ("qwen3_swa", None, FP8),
        ("llama_tied_bias", "fp8", torch.float32),
    ],
)
def test_the_gpus_kernels_compute_what_the_references_do(tiny, name, weights, kv_dtype):
    quantisation = {"weights": weights, "fp8_kv_cache": kv_dtype == FP8}
    folder, _ = tiny(name)
    wanted = steps(load(folder, **quantisation), kv_dtype)
    # torch's product rounds to bf16, which moves a few of the next roundings to FP8 and so hides other differences.
    with gpu_path(), patch("octavo.kernels.scaled_mm.scaled_mm_gpu", scaled_mm_reference):
        got = steps(load(folder, **quantisation), kv_dtype)
    # Beside FP8 keys and values, queries and attention's weights are fp16 on a GPU: each is off by up to 2**-11.
    assert relative_error(got, wanted) < (2**-10 if kv_dtype == FP8 else 1e-5)


def test_fp8_weights_and_an_fp8_cache_on_the_gpus_path_keep_a_model_near_the_one_without(tiny, tmp_path):
    folder, _ = tiny("qwen3_swa")
    wanted = steps(load(folder), torch.float32)
    with gpu_path():
        got = steps(load(folder, weights="fp8", fp8_kv_cache=True), FP8)
    operands, cached = (sensitivity(folder, tmp_path, names) for names in (PROJECTIONS, ("k_proj", "v_proj")))
    # Errors that know nothing of each other add up as their squares do.
    assert 0 < relative_error(got, wanted) < (2 * operands**2 + cached**2) ** 0.5
