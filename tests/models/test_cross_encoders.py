"""Scores of pairs of texts, and vectors of RoBERTas, against transformers' own with the same random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from models.tiny_encoders import CROSS_ENCODERS, make_encoder

from octavo import LLM, InvalidRequest, ModelLoadError, PoolingParams, PromptTooLong, SamplingParams, TextPair

QUERY = "Who wrote it?"
DOCUMENTS = ["She did.", "A cat sleeps on the mat all day", "x", "Nobody knows who did."]


@pytest.fixture(scope="module", params=CROSS_ENCODERS)
def cross_encoder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cross-encoder")
    model, tokenizer = make_encoder(request.param, folder)
    return LLM(str(folder), num_threads=1, served_model_name="judge"), model, tokenizer


@torch.inference_mode()
def logit_of(model, tokenizer, query, document, **cut):
    return model(**tokenizer(query, document, return_tensors="pt", **cut)).logits.item()


def sigmoid(number):
    return float(torch.sigmoid(torch.tensor(number, dtype=torch.float64)))


def test_scores_equal_those_of_transformers(cross_encoder) -> None:
    llm, model, tokenizer = cross_encoder
    expected = [sigmoid(logit_of(model, tokenizer, QUERY, document)) for document in DOCUMENTS]
    assert llm.score(QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01
    expected = [sigmoid(logit_of(model, tokenizer, document, QUERY)) for document in DOCUMENTS]
    assert llm.score(DOCUMENTS, [QUERY] * len(DOCUMENTS)) == pytest.approx(expected, abs=1e-5)


def test_alone_and_among_others_the_bits_are_the_same(cross_encoder) -> None:
    llm, *_ = cross_encoder
    together = llm.score(QUERY, DOCUMENTS * 7)
    for place, document in enumerate(DOCUMENTS * 7):
        assert llm.score(QUERY, document) == [together[place]]
    assert llm.engine.stats().prefix_cache_hits_total == 0


def test_the_document_is_cut_and_never_the_query(cross_encoder) -> None:
    llm, model, tokenizer = cross_encoder
    longest = llm.engine.config.max_model_len
    assert longest == (66 if model.config.model_type == "bert" else 64)
    for text in ("no " * 100, "xy" * 40):
        with pytest.raises(PromptTooLong, match=f"tokens are over the context of {longest}"):
            llm.score(QUERY, text)
        for limit, length in ((-1, longest), (40, 40)):
            expected = logit_of(model, tokenizer, QUERY, text, truncation="only_second", max_length=length)
            found = llm.score(QUERY, text, PoolingParams(truncate_prompt_tokens=limit))
            assert found == pytest.approx([sigmoid(expected)], abs=1e-5)
    with pytest.raises(PromptTooLong, match="query: it leaves no room for a document in 12 tokens"):
        llm.score(QUERY, "no", PoolingParams(truncate_prompt_tokens=12))


def test_whatever_is_no_pair_is_refused_by_name(cross_encoder) -> None:
    llm, *_ = cross_encoder
    for ask in (lambda: llm.embed("a"), lambda: llm.embed([[5, 6]])):
        with pytest.raises(InvalidRequest, match=r"model 'judge' scores pairs of texts.*it makes no embeddings"):
            ask()
    with pytest.raises(InvalidRequest, match=r"model 'judge' scores pairs of texts.*does not generate text"):
        llm.generate("a", SamplingParams(max_tokens=1))
    for params in (PoolingParams(dimensions=1), PoolingParams(normalize=True)):
        with pytest.raises(InvalidRequest, match="a score is no vector"):
            llm.score("a", "b", params)
    for texts, name in ((("", "b"), "query"), (("a", "\ud800"), "document")):
        with pytest.raises(InvalidRequest) as caught:
            llm.score(*texts)
        assert caught.value.parameter == name


def test_the_folder_says_what_becomes_of_the_number(tmp_path) -> None:
    model, tokenizer = make_encoder("BertForSequenceClassification", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    said = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    (tmp_path / "config.json").write_text(json.dumps(config | said))
    prompts = {"prompts": {"ask": "Say: "}, "default_prompt_name": "ask"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    expected = logit_of(model, tokenizer, f"Say: {QUERY}", "x")
    assert not 0 < expected < 1
    assert LLM(str(tmp_path), num_threads=1).score(QUERY, "x") == pytest.approx([expected], abs=1e-5)
    (tmp_path / "config_sentence_transformers.json").write_text('{"activation_fn": "torch.nn.Softmax"}')
    with pytest.raises(ModelLoadError, match=r"activation_fn 'torch\.nn\.Softmax' is not supported"):
        LLM(str(tmp_path), num_threads=1)


@pytest.mark.parametrize("architecture", CROSS_ENCODERS)
def test_more_labels_than_a_score_fail_the_load(architecture, tmp_path) -> None:
    for num_labels in (2, 3):
        make_encoder(architecture, tmp_path, num_labels)
        with pytest.raises(ModelLoadError, match=rf"config\.json: {num_labels} labels \(id2label\)"):
            LLM(str(tmp_path), num_threads=1)


@pytest.mark.parametrize("architecture", ["RobertaModel", "XLMRobertaModel"])
def test_vectors_of_a_roberta_equal_those_of_transformers(architecture, tmp_path) -> None:
    model, tokenizer = make_encoder(architecture, tmp_path, pad_token_id=1)
    llm = LLM(str(tmp_path), num_threads=1)
    texts = [QUERY, *DOCUMENTS, "x" * 61]
    for text, vector in zip(texts, llm.embed(texts), strict=True):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = torch.nn.functional.normalize(states.mean(0), dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), rtol=0, atol=1e-5)
        assert llm.embed(text)[0].tobytes() == vector.tobytes()
    with pytest.raises(InvalidRequest, match=r"model '.*' makes embeddings.*it reads no pairs"):
        llm.embed([TextPair("a", "b")])
