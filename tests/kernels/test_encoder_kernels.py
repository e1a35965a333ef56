"""What an encoder needs of kernels: attention in both directions, GELU, LayerNorm of a sum; held to references."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from kernels.paged import paged_batch, random_sequence

from octavo.kernels.attention_spec import AttentionSpec
from octavo.kernels.gelu import gelu, gelu_reference
from octavo.kernels.layer_norm import layer_norm, layer_norm_reference
from octavo.kernels.paged_attention import paged_attention, paged_attention_reference

DTYPES = [torch.bfloat16, torch.float32]
ATTENTION = {torch.bfloat16: 2e-2, torch.float32: 2e-5}
ROWS = {torch.bfloat16: {"rtol": 1e-2, "atol": 1e-6}, torch.float32: {"rtol": 0, "atol": 1e-6}}
LENGTHS = [1, 15, 16, 17, 63, 64, 65, 200]
SIZES = [(1, 1), (1, 576), (3, 15), (5, 17), (63, 16), (64, 1000)]


def random(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole_prompts(lengths, heads, head_dim, dtype, block_size=16, placement_seed=0):
    sequences = [random_sequence(length, heads, head_dim, dtype, seed=length) for length in lengths]
    return sequences, paged_batch(sequences, lengths, block_size, placement_seed)


def attend(batch, head_dim, operation=paged_attention):
    spec = AttentionSpec(head_dim**-0.5, causal=False)
    return operation(batch.query, batch.kv_cache, batch.metadata, spec)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [1, 8, 16, 24, 64])
@pytest.mark.parametrize(("heads", "head_dim"), [((12, 12), 32), ((4, 2), 40), ((3, 3), 128)])
def test_attention_in_both_directions_equals_the_reference(dtype, block_size, heads, head_dim):
    _, batch = whole_prompts(LENGTHS, heads, head_dim, dtype, block_size)
    wanted = attend(batch, head_dim, paged_attention_reference)
    assert torch.isfinite(wanted).all()
    torch.testing.assert_close(attend(batch, head_dim), wanted, rtol=0, atol=ATTENTION[dtype])


def test_the_reference_equals_attention_without_a_mask():
    sequences, batch = whole_prompts(LENGTHS, (4, 2), 16, torch.float32)
    got = attend(batch, 16, paged_attention_reference)
    wanted = []
    for query, keys, values in sequences:
        parts = (part.transpose(0, 1) for part in (query, keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)))
        wanted.append(torch.nn.functional.scaled_dot_product_attention(*parts).transpose(0, 1))
    torch.testing.assert_close(got, torch.cat(wanted), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prompt_is_the_same_bits_alone_and_among_others(dtype):
    sequences, batch = whole_prompts(LENGTHS, (12, 12), 32, dtype)
    together, first = attend(batch, 32), 0
    for sequence, length in zip(sequences, LENGTHS, strict=True):
        alone = attend(paged_batch([sequence], [length], 16, placement_seed=9), 32)
        assert torch.equal(alone, together[first : first + length])
        first += length


def test_a_window_has_no_meaning_there():
    with pytest.raises(AssertionError, match="window"):
        AttentionSpec(1.0, 5, causal=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_gelu_equals_the_reference(dtype, size):
    x = random(*size, dtype=dtype) * 4
    # In fp64: PyTorch's own in fp32 is three times as far off as ours.
    torch.testing.assert_close(gelu(x), gelu_reference(x.double()).to(dtype), **ROWS[dtype])


def test_gelu_of_extremes():
    x = torch.tensor([[-1e30, -40.0, -6.0, -0.0, 0.0, 6.0, 40.0, 1e30, float("nan")]])
    got = gelu(x)
    assert got[0, -1].isnan()
    torch.testing.assert_close(got[:, :-1], gelu_reference(x)[:, :-1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_residual", [True, False])
def test_layer_norm_equals_the_reference(dtype, size, has_residual):
    x, residual = (random(*size, dtype=dtype, seed=seed) * 3 + 1 for seed in (0, 1))
    weight, bias = (random(size[1], dtype=dtype, seed=seed) for seed in (2, 3))
    parts = (x, residual if has_residual else None, weight, bias, 1e-5)
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(layer_norm(*parts), layer_norm_reference(*parts), **tolerance)


def test_layer_norm_of_a_row_far_from_zero_keeps_its_digits():
    x = random(2, 1000, dtype=torch.float32) + 1000
    parts = (x, None, torch.ones(1000), torch.zeros(1000), 1e-12)
    wanted = torch.nn.functional.layer_norm(x.double(), (1000,), eps=1e-12)
    torch.testing.assert_close(layer_norm(*parts).double(), wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("operation", [gelu, lambda x: layer_norm(x, x, x[0], x[0], 1e-5)], ids=["gelu", "layer_norm"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_is_the_same_bits_alone_and_among_others(operation, num_threads):
    x = random(70, 333, dtype=torch.float32)
    with patch("torch.get_num_threads", lambda: num_threads):
        together = operation(x)
    for row in (0, 1, 37, 69):
        alone = torch.cat((x[:1], x[row : row + 1]))
        assert torch.equal(operation(alone)[1], together[row])
