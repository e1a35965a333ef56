"""Logits equal those of transformers, for every family and every way to cut the work into steps."""

import pytest
import torch
from models.driver import Driver, random_tokens
from models.tiny_models import TINY_MODELS

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4


def reference_logits(model, token_ids):
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0]


@pytest.fixture(params=TINY_MODELS)
def pair(request, tiny, load):
    """(our model, transformers' model)"""
    folder, reference = tiny(request.param)
    return load(folder), reference


def assert_close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=0, atol=TOLERANCE)


def test_ragged_batch_equals_transformers(pair):
    model, reference = pair
    sequences = [random_tokens(length, seed=length) for length in (1, 15, 16, 17, 63, 100)]
    got = Driver(model).step([(i, tokens, 0) for i, tokens in enumerate(sequences)])
    for logits, tokens in zip(got, sequences, strict=True):
        assert_close(logits, reference_logits(reference, tokens))


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 33])
def test_chunked_prefill_equals_transformers(pair, chunk_size):
    model, reference = pair
    tokens = random_tokens(70)
    assert_close(Driver(model).run("a", tokens, chunk_size), reference_logits(reference, tokens))


def test_decode_beside_prefill_equals_transformers(pair):
    model, reference = pair
    sequences = [random_tokens(60, seed=i) for i in range(3)]
    driver = Driver(model, block_size=8)
    got = [[logits] for logits in driver.step([(i, sequences[i][: 20 + i], 0) for i in range(3)])]
    for offset in range(20, 30):
        rows = [(i, sequences[i][offset + i : offset + i + 1], offset + i) for i in range(3)]
        rows.append((f"other {offset}", random_tokens(9, seed=offset), 0))
        for i, logits in enumerate(driver.step(rows)[:3]):
            got[i].append(logits)
    for i, parts in enumerate(got):
        assert_close(torch.cat(parts), reference_logits(reference, sequences[i][: 30 + i]))


def test_a_shared_prefix_equals_transformers(pair):
    model, reference = pair
    prefix, tails = random_tokens(48), [random_tokens(10, seed=i) for i in (1, 2)]
    driver = Driver(model)
    driver.run("first", prefix + tails[0], 64)
    driver.share("first", "second", 3)
    (got,) = driver.step([("second", tails[1], 48)])
    assert_close(got, reference_logits(reference, prefix + tails[1])[48:])


def test_bf16_stays_near_transformers(tiny, load):
    folder, reference = tiny("llama")
    tokens = random_tokens(60)
    got = Driver(load(folder, torch.bfloat16), torch.bfloat16).run("a", tokens, 60)
    wanted = reference_logits(reference, tokens)
    assert (got - wanted).abs().mean() < 0.02 * wanted.abs().mean()


@pytest.mark.parametrize("name", TINY_MODELS)
def test_without_c_kernels_equals_transformers(name, tiny, load, monkeypatch):
    monkeypatch.setattr("octavo.kernels.native.library", lambda: None)
    folder, reference = tiny(name)
    tokens = random_tokens(70)
    assert_close(Driver(load(folder)).run("a", tokens, 33), reference_logits(reference, tokens))
