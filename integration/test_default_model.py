"""The embedded SmolLM2 itself: transformers' tokens and vectors in fp32, streams that survive the engine's death."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from bench.peer import load_llama
from transformers import LlamaForCausalLM

from octavo import LLM, AsyncEngine, EngineConfig, PoolingParams, SamplingParams

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea,",
    "1. Mix the flour and the sugar.\n2. Add 3 eggs.\n3.",
    "Der schnelle braune Fuchs springt über den faulen Hund. 🦊 In English:",
]
NUM_TOKENS = 32


@pytest.fixture(scope="module")
def reference() -> LlamaForCausalLM:
    """transformers' own model in fp32, with the file's weights dequantised."""
    return load_llama(None, torch.float32)


@pytest.mark.slow
def test_greedy_text_equals_transformers_token_for_token(reference):
    llm = LLM(dtype="float32", kv_cache_memory_bytes=1 << 30)
    for result in llm.generate(PROMPTS, SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)):
        prompt, written = result.prompt_token_ids, result.outputs[0].token_ids
        with torch.inference_mode():
            likeliest = reference(torch.tensor([prompt + written])).logits[0].argmax(dim=-1).tolist()
        # Each token is the one that transformers writes after those before it: so it writes the same text.
        assert len(written) == NUM_TOKENS
        assert written == likeliest[len(prompt) - 1 : -1]


@pytest.mark.slow
def test_vectors_equal_the_last_state_of_transformers_however_a_prompt_is_cut(reference):
    # Chunks of 32 tokens over blocks of 16.
    llm = LLM(
        runner="pooling", dtype="float32", max_model_len=256, max_num_batched_tokens=32, kv_cache_memory_bytes=1 << 29
    )
    words = np.random.default_rng(2).integers(100, 40000, 200).tolist()
    prompts = [words[:1], words[:31], words[:32], words[:33], words]
    params = PoolingParams(normalize=False)
    for prompt, vector in zip(prompts, llm.embed(prompts, params), strict=True):
        with torch.inference_mode():
            expected = reference.model(torch.tensor([prompt])).last_hidden_state[0, -1].numpy()
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        # Alone, and with all but its last block out of the cache.
        assert llm.embed([prompt], params)[0].tobytes() == vector.tobytes()
    assert llm.stats().prefix_cache_hits_total > 0
    assert np.linalg.norm(llm.embed([words])[0]) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_16_seeded_streams_survive_the_death_of_the_engine_unchanged():
    params = [SamplingParams(seed=i, temperature=0.9, top_p=0.95, max_tokens=40, ignore_eos=True) for i in range(16)]
    engine = AsyncEngine(EngineConfig())
    try:
        engine.wait_ready(120)

        def texts(kill: bool) -> list[str]:
            streams = [engine.submit(PROMPTS[i % 5], params[i]) for i in range(16)]
            found = [""] * 16
            for number, stream in enumerate(streams):
                for output in stream:
                    found[number] += output.outputs[0].text
                    if kill and len(found[0]) > 20:
                        assert engine.engine_pid is not None
                        os.kill(engine.engine_pid, signal.SIGKILL)
                        kill = False
            return found

        undisturbed = texts(kill=False)
        assert texts(kill=True) == undisturbed
        assert engine.stats().engine_restarts_total == 1
    finally:
        engine.shutdown(drain_s=0)
