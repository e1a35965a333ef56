"""Weights that stay in 8 or 4 bits, in whole models: a GGUF file's own codes, and codes made while loading."""

import gguf
import numpy as np
import pytest
import torch
from bench.shuffled_model import shuffle
from models.driver import Driver, random_tokens
from models.test_gguf import write_gguf
from safetensors.torch import load_file, save_file

from octavo.checkpoint import default_model, open_checkpoint
from octavo.kernels.quantised_linear import Kind
from octavo.layers.linear import Linear
from octavo.models import load_model
from octavo.models.config import Quantisation
from octavo.models.gguf_codes import codes_of
from octavo.quant.codes import quantise_stacked
from octavo.quant.int4 import quantise_int4
from octavo.quant.int8 import quantise_int8

pytestmark = pytest.mark.slow

TOKENS = random_tokens(40)
PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


def load(path, dtype=torch.float32, **quantisation):
    checkpoint = open_checkpoint(path)
    return load_model(checkpoint, dtype, torch.device("cpu"), lambda *_: None, Quantisation(**quantisation))


def logits_of(model, dtype=torch.float32, chunk_size=40):
    return Driver(model, dtype).run("a", TOKENS, chunk_size)


def relative_error(got, wanted):
    """Root mean square of the difference over that of `wanted`."""
    return float((got - wanted).norm() / wanted.norm())


def kinds_of(model):
    """Of every linear layer: the kind of its codes, or None."""
    linears = [model.lm_head]
    for layer in model.layers:
        linears += [layer.attention.qkv, layer.attention.output, layer.mlp.gate_up, layer.mlp.down]
    return [linear.quantised.packed.kind if linear.quantised else None for linear in linears]


@pytest.fixture
def written(tiny, tmp_path):
    """(model's name, stored type) -> a GGUF file of it."""

    def write(name, stored):
        architecture = "llama" if name.startswith("llama") else name
        file = tmp_path / f"{name}-{stored}.gguf"
        write_gguf(tiny(name)[1], architecture, file, kind=gguf.GGMLQuantizationType[stored])
        return file

    return write


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    ("stored", "kind"),
    [("Q8_0", Kind.INT8_GROUPS), ("Q4_0", Kind.INT4_GROUPS), ("Q4_1", Kind.INT4_MIN_GROUPS)],
)
def test_a_files_own_codes_are_the_numbers_that_they_dequantise_to(name, stored, kind, written):
    file = written(name, stored)
    model, plain = load(file, gguf_codes=True), load(file)
    assert kinds_of(model) == [kind] * 9
    assert torch.equal(model.embedding.table, plain.embedding.table)
    # The same numbers in fp32, added up in another order.
    wanted = logits_of(plain)
    assert relative_error(logits_of(model), wanted) < 1e-5
    # In bf16 codes and scales lose nothing, while dequantised weights are rounded once more.
    packed = logits_of(load(file, torch.bfloat16, gguf_codes=True), torch.bfloat16)
    dequantised = logits_of(load(file, torch.bfloat16), torch.bfloat16)
    assert relative_error(packed, wanted) < 1.25 * relative_error(dequantised, wanted)


@pytest.mark.parametrize("stored", ["F16", "BF16", "Q5_0"])
def test_other_types_of_a_file_become_numbers(stored, written):
    file = written("qwen2", stored)
    model = load(file, gguf_codes=True)
    assert kinds_of(model) == [None] * 9
    assert torch.equal(logits_of(model), logits_of(load(file)))


@pytest.mark.parametrize("other", [lambda codes: None, lambda codes: quantise_int8(codes.dequantise())])
def test_projections_of_different_types_that_are_one_layer_become_numbers(other, written, monkeypatch):
    file = written("llama", "Q8_0")
    monkeypatch.setattr(
        "octavo.models.gguf_weights.codes_of",
        lambda tensor: other(codes_of(tensor)) if tensor.name.endswith("attn_v.weight") else codes_of(tensor),
    )
    model = load(file, gguf_codes=True)
    attention = model.layers[0].attention
    assert attention.qkv.quantised is None
    assert attention.output.quantised is not None
    assert relative_error(logits_of(model), logits_of(load(file))) < 1e-5


@pytest.mark.parametrize("number", [-128, float("inf"), float("nan")])
def test_what_codes_cannot_hold_is_left_to_be_dequantised(written, number):
    (tensor,) = (t for t in open_checkpoint(written("llama", "Q8_0")).gguf.reader.tensors if t.name == "output.weight")
    data = tensor.data.copy()
    if number == -128:
        data.view(np.int8)[3, 2] = number
    else:
        data[3, :2] = np.array([number], np.float16).view(np.uint8)
    assert codes_of(tensor) is not None
    assert codes_of(tensor._replace(data=data)) is None


def test_the_embedded_model_keeps_its_codes_and_reads_a_tied_table_twice():
    checkpoint = default_model()
    model = load(checkpoint, gguf_codes=True)
    assert kinds_of(model) == [Kind.INT8_GROUPS] + [Kind.INT4_MIN_GROUPS] * 120
    assert relative_error(logits_of(model), logits_of(load(checkpoint))) < 1e-5


def off_by_half_steps(folder, target, quantise):
    """The relative error of the logits when each weight is off by up to half a step of its codes, at random."""
    generator = torch.Generator().manual_seed(0)

    def off(name, tensor):
        if name.split(".")[-2] not in PARTS:
            return tensor
        steps = quantise(tensor).scales.float()
        size = tensor.shape[1] // steps.shape[1]
        return tensor + steps.repeat_interleave(size, 1) * (torch.rand(tensor.shape, generator=generator) - 0.5)

    tensors = load_file(folder / "model.safetensors")
    (target / "config.json").write_text((folder / "config.json").read_text())
    save_file({name: off(name, tensor) for name, tensor in tensors.items()}, target / "model.safetensors")
    return relative_error(logits_of(load(target)), logits_of(load(folder)))


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral_swa"])
@pytest.mark.parametrize(("scheme", "quantise"), [("int8", quantise_int8), ("int4", quantise_int4)])
def test_a_quantised_model_is_as_near_as_its_steps_are_small(name, scheme, quantise, tiny, tmp_path):
    folder, _ = tiny(name)
    model = load(folder, weights=scheme, head=scheme)
    assert None not in kinds_of(model)
    error = relative_error(logits_of(model), logits_of(load(folder)))
    # Rounding errors are spread evenly over half a step either way, too.
    expected = off_by_half_steps(folder, tmp_path, quantise)
    assert 0.5 * expected < error < 1.5 * expected


def test_a_tied_head_in_8_bits_beside_layers_in_4_and_a_table_of_numbers(tiny):
    folder, _ = tiny("llama_tied_bias")
    model = load(folder, weights="int4", head="int8")
    assert kinds_of(model) == [Kind.INT8_ROWS] + [Kind.INT4_MIN_GROUPS] * 8
    assert torch.equal(model.embedding.table, load(folder).embedding.table)
    assert torch.equal(model.layers[1].mlp.down(torch.zeros(1, 128)), model.layers[1].mlp.down.bias.unsqueeze(0))


@pytest.mark.parametrize(("scheme", "num_inputs", "fits"), [
    ("int8", 4, True), ("int8", 100, True), ("int8", 30, False),
    ("int4", 32, True), ("int4", 100, False), ("int4", 48, False),
])  # fmt: skip
def test_inputs_that_do_not_fill_vectors_or_groups_leave_a_weight_as_it_is(scheme, num_inputs, fits):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, num_inputs, generator=generator)
    layer = Linear([weight], quantization=scheme)
    assert (layer.quantised is not None) == fits
    x = torch.randn(3, num_inputs, generator=generator)
    step = {"int8": quantise_int8, "int4": quantise_int4}[scheme](weight).scales.max() if fits else 0
    assert ((layer(x) - x @ weight.t()).abs() <= 0.51 * step * x.abs().sum(1, keepdim=True) + 1e-4).all()


@pytest.mark.parametrize("quantise", [quantise_int8, quantise_int4])
def test_rounding_is_off_by_half_a_step_at_most_and_zeros_stay(quantise):
    weight = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    weight[3, 32:] = 0.25
    codes = quantise(weight)
    steps = codes.scales.float().repeat_interleave(64 // codes.scales.shape[1], 1)
    off = (codes.dequantise() - weight).abs()
    # Scales and minima in fp16 are off by up to 2**-11 of themselves.
    assert (off <= 0.5 * steps + 2**-9 * weight.abs().max()).all()
    assert not off[2].any()


@pytest.mark.parametrize("quantise", [quantise_int8, quantise_int4])
def test_large_and_several_weights_are_quantised_in_parts(quantise):
    weights = [torch.randn(size, 32, generator=torch.Generator().manual_seed(size)) for size in (9000, 3)]
    got, wanted = quantise_stacked(weights, quantise), quantise(torch.cat(weights))
    assert torch.equal(got.codes, wanted.codes) and torch.equal(got.scales, wanted.scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("how", ["int8", "int4", "Q4_1"])
def test_chunks_and_batch_mates_do_not_change_a_bit(how, dtype, tiny, written):
    if how == "Q4_1":
        model = load(written("llama", how), dtype, gguf_codes=True)
    else:
        model = load(tiny("llama")[0], dtype, weights=how, head="int8")
    wanted = logits_of(model, dtype, 1)
    assert torch.equal(logits_of(model, dtype, 7), wanted)
    driver = Driver(model, dtype)
    mates = [(i, random_tokens(3 + i, seed=i), 0) for i in range(5)]
    assert torch.equal(driver.step([*mates, ("row", TOKENS, 0)])[5], wanted)


def test_channels_in_another_order_make_the_same_function(tiny, tmp_path):
    folder, _ = tiny("llama")
    tensors = load_file(folder / "model.safetensors")
    shuffled = {name: tensor.contiguous() for name, tensor in shuffle(tensors, 4, 2).items()}
    assert not any(torch.equal(shuffled[name], tensor) for name, tensor in tensors.items() if "q_proj" in name)
    save_file(shuffled, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert relative_error(logits_of(load(tmp_path)), logits_of(load(folder))) < 1e-5
