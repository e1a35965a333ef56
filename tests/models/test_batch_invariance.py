"""The logits of a token are bitwise the same, whatever else is computed with it and however its past was."""

import pytest
import torch
from models.driver import Driver, random_tokens

pytestmark = pytest.mark.slow

CASES = [
    (name, dtype)
    for name in ("llama", "llama_tied_bias", "mistral_swa", "qwen3")
    for dtype in (torch.bfloat16, torch.float32)
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{str(case[1])[6:]}")
def case(request, tiny, load):
    """(model, its dtype, a sequence, the logits of each position when fed token by token, alone)"""
    name, dtype = request.param
    model = load(tiny(name)[0], dtype)
    tokens = random_tokens(70)
    return model, dtype, tokens, Driver(model, dtype).run("alone", tokens, 1)


@pytest.mark.parametrize("chunk_size", [2, 16, 31, 70])
def test_chunking_does_not_change_a_bit(case, chunk_size):
    model, dtype, tokens, wanted = case
    driver = Driver(model, dtype, placement_seed=chunk_size)
    assert torch.equal(driver.run("chunked", tokens, chunk_size), wanted)


@pytest.mark.parametrize("num_mates", [1, 3, 31])
def test_batch_mates_do_not_change_a_bit(case, num_mates):
    model, dtype, tokens, wanted = case
    driver = Driver(model, dtype, placement_seed=num_mates)
    driver.step([("row", tokens[:40], 0)])
    mates = [(i, random_tokens(1 + 5 * i % 23, seed=i), 0) for i in range(num_mates)]
    row = ("row", tokens[40:41], 40)
    assert torch.equal(
        driver.step([*mates[: num_mates // 2], row, *mates[num_mates // 2 :]])[num_mates // 2], wanted[40:41]
    )


def test_a_cached_prefix_does_not_change_a_bit(case):
    model, dtype, tokens, wanted = case
    driver = Driver(model, dtype, placement_seed=5)
    driver.run("first", tokens[:48] + random_tokens(9), 64)
    driver.share("first", "second", 3)
    assert torch.equal(driver.step([("second", tokens[48:], 48)])[0], wanted[48:])


def test_threads_do_not_change_a_bit(case):
    model, dtype, tokens, wanted = case
    torch.set_num_threads(2)
    assert torch.equal(Driver(model, dtype).run("two threads", tokens, 70), wanted)
