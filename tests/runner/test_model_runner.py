"""Steps over a real, tiny model: rows, chunks, blocks and what comes out of them."""

import math

import pytest
import torch
from runner.row_driver import GREEDY

from octavo.sampling_params import SamplingParams


def tokens(length, seed=0):
    return torch.randint(5, 500, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy_by_hand(plain_logprobs, prompt, count):
    known = list(prompt)
    for _ in range(count):
        known.append(int(plain_logprobs(known)[-1].argmax()))
    return known[len(prompt) :]


@pytest.mark.slow
def test_a_ragged_batch_gives_what_plain_forwards_give(driver, plain_logprobs):
    prompts = {f"s{n}": tokens(n, seed=n) for n in (1, 3, 4, 5, 17, 40)}
    for name, prompt in prompts.items():
        driver.add(name, prompt)
    for _ in range(6):
        driver.step()
    for name, prompt in prompts.items():
        assert driver.running[name].token_ids[len(prompt) :] == greedy_by_hand(plain_logprobs, prompt, 6)


def test_a_chunked_prompt_gives_the_same_bits_as_a_whole_one(driver):
    prompt, params = tokens(37), SamplingParams(logprobs=3, prompt_logprobs=2)
    results = []
    for chunk_size in (1000, 1, 4, 7):
        name = f"chunks of {chunk_size}"
        driver.add(name, prompt, params=params, prompt_logprobs=True)
        driver.generate(name, 4, chunk_size)
        done = driver.remove(name)
        results.append((done.token_ids, done.logprobs, done.prompt_logprobs))
    assert results[1:] == results[:1] * 3


def test_a_chunk_that_does_not_end_the_sequence_samples_nothing(driver):
    driver.add("a", tokens(10), params=SamplingParams(temperature=0, logprobs=1))
    driver.add("b", tokens(3))
    output = driver.step({"a": 9, "b": 3})
    assert [len(found) for found in output.sampled_token_ids] == [0, 1]
    assert output.logprobs == {}
    output = driver.step({"b": 1, "a": 1})
    assert [len(found) for found in output.sampled_token_ids] == [1, 1]
    assert list(output.logprobs) == [1]


def test_logprobs_and_prompt_logprobs_are_those_of_a_plain_forward(driver, plain_logprobs):
    prompt = tokens(150)  # more positions than logits are held at once
    driver.add("a", prompt, params=SamplingParams(temperature=0, logprobs=4, prompt_logprobs=3), prompt_logprobs=True)
    driver.generate("a", 3, chunk_size=80)
    sequence = driver.running["a"]
    expected = plain_logprobs(sequence.token_ids)
    found = sequence.prompt_logprobs + sequence.logprobs
    assert len(sequence.prompt_logprobs) == len(prompt) - 1
    assert len(found) == len(sequence.token_ids) - 1
    for position, candidates in enumerate(found):
        actual = sequence.token_ids[position + 1]
        assert candidates[0].token_id == actual
        assert candidates[0].rank == 1 + int((expected[position] > expected[position, actual]).sum())
        best = expected[position].topk(4 if position >= len(prompt) - 1 else 3).indices.tolist()
        assert {c.token_id for c in candidates} == {actual, *best}
        for candidate in candidates:
            assert candidate.logprob == pytest.approx(float(expected[position, candidate.token_id]), abs=2e-4)


def test_prompt_logprobs_end_with_the_prompt_of_a_sequence_that_has_output(driver):
    driver.add("a", tokens(9), num_prompt_tokens=5, params=SamplingParams(prompt_logprobs=0), prompt_logprobs=True)
    driver.add("b", tokens(1), params=SamplingParams(prompt_logprobs=0), prompt_logprobs=True)
    output = driver.step()
    assert {index: len(found) for index, found in output.prompt_logprobs.items()} == {0: 4}


def test_a_row_that_is_used_again_knows_nothing_of_its_predecessor(driver):
    loud = SamplingParams(
        seed=3, repetition_penalty=1.5, presence_penalty=1.0, logit_bias={5: 9.0}, logprobs=2, prompt_logprobs=1
    )
    driver.add("quiet", tokens(6, seed=1))
    expected = driver.generate("quiet", 5)
    driver.remove("quiet")
    driver.add("loud", tokens(30, seed=2), params=loud, prompt_logprobs=True)
    driver.generate("loud", 5)
    row = driver.remove("loud").row
    driver.add("quiet", tokens(6, seed=1))
    assert driver.running["quiet"].row == row
    assert driver.generate("quiet", 5) == expected
    assert driver.running["quiet"].logprobs == driver.running["quiet"].prompt_logprobs == []


def test_copied_blocks_hold_what_their_sources_held_in_the_order_given(driver):
    prompt = tokens(8)
    driver.add("a", prompt)
    expected = driver.generate("a", 4)
    first, second = driver.running["a"].blocks[:2]
    # A chain: the second copy reads what the first one wrote.
    middle = driver.copy_block(first)
    copies = [driver.copy_block(middle), driver.copy_block(second)]
    driver.add("b", [*prompt, expected[0]], num_prompt_tokens=8, blocks=copies)
    assert driver.generate("b", 3) == expected[1:]


def test_shared_blocks_give_the_same_bits_as_computed_ones(driver):
    prompt, params = tokens(11), SamplingParams(temperature=0, logprobs=5)
    driver.add("a", prompt, params=params)
    driver.generate("a", 3)
    driver.add("b", prompt, params=params, blocks=driver.running["a"].blocks[:2])
    driver.generate("b", 3)
    assert driver.running["a"].logprobs == driver.running["b"].logprobs
    driver.running["b"].blocks = driver.running["b"].blocks[2:]


KINDS = [
    SamplingParams(temperature=0.9),
    SamplingParams(temperature=0),
    SamplingParams(top_p=0.8, logprobs=2),
    SamplingParams(top_k=20, repetition_penalty=1.3),
    SamplingParams(min_p=0.05, presence_penalty=0.4, frequency_penalty=0.1),
    SamplingParams(logit_bias={9: 2.0}, min_tokens=4),
]


@pytest.mark.slow
def test_a_seeded_request_gives_the_same_alone_and_among_31_others(driver):
    alone = []
    for index, params in enumerate(KINDS):
        driver.add("a", tokens(9 + index, seed=index), params=params, seed=-index, stop_token_ids=(2, 40))
        driver.generate("a", 8, chunk_size=5)
        alone.append(driver.remove("a"))
    for index in range(32):
        kind = index % len(KINDS)
        prompt = tokens(9 + kind, seed=kind) if index < len(KINDS) else tokens(5 + 3 * index, seed=100 + index)
        seed = -kind if index < len(KINDS) else index
        driver.add(str(index), prompt, params=KINDS[kind], seed=seed, stop_token_ids=(2, 40))
    for _ in range(8):
        driver.step()
    for index, expected in enumerate(alone):
        found = driver.running[str(index)]
        assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)


@pytest.mark.parametrize("params", KINDS, ids=range(len(KINDS)))
def test_a_replay_goes_on_where_the_stream_stopped(driver, params):
    prompt = tokens(10)
    driver.add("first", prompt, params=params, seed=77, stop_token_ids=(2, 40))
    whole = driver.generate("first", 10)
    for stopped in (1, 6):
        driver.add(
            "again", prompt + whole[:stopped], num_prompt_tokens=10, params=params, seed=77, stop_token_ids=(2, 40)
        )
        assert driver.generate("again", 10 - stopped) == whole[stopped:]
        driver.remove("again")


def test_seeds_and_positions_make_different_streams(driver):
    for seed in (1, 2, -(2**63)):
        driver.add(f"seed {seed}", tokens(5), params=SamplingParams(temperature=2.0), seed=seed)
    for _ in range(8):
        driver.step()
    assert len({tuple(s.token_ids) for s in driver.running.values()}) == 3


def test_a_row_whose_numbers_are_not_finite_fails_alone(driver, shared_runner):
    for name in "abc":
        driver.add(name, tokens(8, seed=ord(name)), params=SamplingParams(temperature=0, logprobs=1))
    driver.step()
    clean = {name: list(driver.running[name].token_ids) for name in "abc"}
    broken = driver.running["b"]
    for kv_cache in shared_runner._kv_caches:
        kv_cache[broken.blocks[0]] = math.nan
    output = driver.step()
    assert list(output.failed) == [1]
    assert "not finite" in output.failed[1]
    assert [len(found) for found in output.sampled_token_ids] == [1, 0, 1]
    assert sorted(output.logprobs) == [0, 2]
    assert broken.token_ids == clean["b"]


def test_prompt_logprobs_that_are_not_finite_fail_the_row_too(driver, shared_runner):
    params = SamplingParams(temperature=0, prompt_logprobs=1)
    driver.add("a", tokens(9), params=params, prompt_logprobs=True)
    driver.step({"a": 4})
    for kv_cache in shared_runner._kv_caches:
        kv_cache[driver.running["a"].blocks[0]] = math.nan
    output = driver.step({"a": 5})
    assert "not finite" in output.failed[0]
    assert output.prompt_logprobs == {}
    assert output.sampled_token_ids == [[]]


def test_a_row_that_failed_in_its_prompt_is_not_sampled(driver, shared_runner, monkeypatch):
    compute_logits = shared_runner._model.compute_logits
    monkeypatch.setattr(
        shared_runner._model,
        "compute_logits",
        lambda hidden: compute_logits(hidden) * (math.nan if len(hidden) == 8 else 1),
    )
    driver.add("a", tokens(9), params=SamplingParams(temperature=0, prompt_logprobs=1), prompt_logprobs=True)
    driver.add("b", tokens(3))
    output = driver.step()
    assert list(output.failed) == [0]
    assert [len(found) for found in output.sampled_token_ids] == [0, 1]


def test_a_step_without_rows_only_applies_its_changes(driver):
    driver.add("a", tokens(4))
    driver.step()
    driver.remove("a")
    output = driver.step({})
    assert (output.step_id, output.sampled_token_ids) == (1, [])


def test_the_context_can_be_filled_to_its_last_token(driver):
    driver.add("a", tokens(255))
    driver.step()
    assert len(driver.running["a"].token_ids) == 256


def test_nothing_fell_back_to_a_slower_way(driver, shared_runner):
    before = shared_runner.num_fallbacks
    driver.add("a", tokens(4), params=GREEDY)
    driver.generate("a", 2)
    assert shared_runner.num_fallbacks == before
