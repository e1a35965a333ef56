"""Vectors of a real encoder, against transformers' own; alone and in a batch, the same bits."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from octavo import LLM, InvalidRequest, PoolingParams, PromptTooLong

pytestmark = pytest.mark.slow

# Tokens, [CLS] and [SEP] included; 256 is what the vectors were made for, 512 what the model can take.
LENGTHS = [2, 3, 17, 64, 65, 200, 256, 300, 512]
SENTENCES = ["A man is eating food.", "A man eats something.", "The sky is blue today."]


@pytest.fixture(scope="module")
def transformers_model(minilm):
    return AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def llm(minilm):
    return LLM(str(minilm), max_model_len=512, num_threads=2)


@pytest.fixture(scope="module")
def prompts(transformers_model):
    """Token ids of every length, of real words."""
    words = np.random.default_rng(1).integers(2000, 20000, max(LENGTHS)).tolist()
    return [[101, *words[: length - 2], 102] for length in LENGTHS]


@pytest.fixture(scope="module")
def wanted(transformers_model, prompts):
    return [mean_of(transformers_model[1], token_ids) for token_ids in prompts]


@torch.inference_mode()
def states_of(model, token_ids):
    return model(torch.tensor([token_ids])).last_hidden_state[0]


def mean_of(model, token_ids):
    """What Sentence Transformers does with this model: the mean of all tokens, of length 1."""
    return torch.nn.functional.normalize(states_of(model, token_ids).mean(0), dim=0).numpy()


def test_vectors_equal_those_of_transformers(llm, prompts, wanted):
    for vector, expected in zip(llm.embed(prompts), wanted, strict=True):
        assert vector.dtype == np.float32
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)


def test_texts_are_read_as_transformers_reads_them(llm, transformers_model):
    tokenizer, model = transformers_model
    texts = ["a", "Ünïcödé ÀÉ! 数学 🙂", *SENTENCES]
    for text, vector in zip(texts, llm.embed(texts), strict=True):
        np.testing.assert_allclose(vector, mean_of(model, tokenizer(text).input_ids), rtol=0, atol=1e-5)


def test_alone_and_among_others_the_bits_are_the_same(llm, prompts):
    together = llm.embed(prompts + prompts[::-1])
    for place, prompt in enumerate(prompts):
        (alone,) = llm.embed([prompt])
        assert alone.tobytes() == together[place].tobytes() == together[-1 - place].tobytes()


def test_threads_do_not_change_a_bit(minilm, llm, prompts):
    together = llm.embed(prompts)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert [v.tobytes() for v in llm.embed(prompts)] == [v.tobytes() for v in together]
    finally:
        torch.set_num_threads(before)


def test_scores_are_cosines(llm, transformers_model):
    tokenizer, model = transformers_model
    vectors = [mean_of(model, tokenizer(text).input_ids) for text in SENTENCES]
    scores = llm.score(SENTENCES[0], SENTENCES[1:])
    assert scores == pytest.approx([float(vectors[0] @ other) for other in vectors[1:]], abs=1e-5)
    assert scores[0] > 0.8 > 0.2 > scores[1]
    assert llm.score(SENTENCES, SENTENCES) == pytest.approx([1.0] * 3)
    with pytest.raises(InvalidRequest, match=r"2 of them.*\(3\)"):
        llm.score(SENTENCES[:2], SENTENCES)


def test_without_normalisation_the_vector_is_the_mean(llm, transformers_model, prompts):
    (vector,) = llm.embed([prompts[3]], PoolingParams(normalize=False))
    expected = states_of(transformers_model[1], prompts[3]).mean(0).numpy()
    assert abs(np.linalg.norm(expected) - 1) > 0.1
    np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)


def test_a_longer_text_is_refused_or_cut_with_what_is_around_it_kept(minilm, transformers_model):
    tokenizer, model = transformers_model
    llm = LLM(str(minilm), num_threads=2)
    assert llm.engine.config.max_model_len == 256
    text = " ".join(SENTENCES * 30)
    with pytest.raises(PromptTooLong, match=f"{len(tokenizer(text).input_ids)} tokens are over the context of 256"):
        llm.embed(text)
    for limit, length in ((-1, 256), (256, 256), (20, 20), (1000, None)):
        params = PoolingParams(truncate_prompt_tokens=limit)
        if length is None:
            with pytest.raises(PromptTooLong):
                llm.embed(text, params)
            continue
        cut = tokenizer(text, truncation=True, max_length=length).input_ids
        assert cut[-1] == 102
        np.testing.assert_allclose(llm.embed(text, params)[0], mean_of(model, cut), rtol=0, atol=1e-5)


def test_the_first_token_where_the_model_says_so(minilm, transformers_model, prompts, tmp_path):
    folder = tmp_path / "cls"
    shutil.copytree(minilm, folder, symlinks=True)
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(modes))
    modules = json.loads((folder / "modules.json").read_text())[:2]
    (folder / "modules.json").write_text(json.dumps(modules))
    vector = LLM(str(folder), num_threads=2).embed([prompts[2]])[0]
    np.testing.assert_allclose(vector, states_of(transformers_model[1], prompts[2])[0].numpy(), rtol=0, atol=1e-5)
