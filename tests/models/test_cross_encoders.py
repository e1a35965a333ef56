"""Scores of pairs of texts, and vectors of RoBERTas, against transformers' own with the same random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from models.tiny_encoders import CROSS_ENCODERS, make_encoder
from safetensors.torch import load_file, save_file

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
    for activation in ("torch.nn.Softmax", "judges.Identity"):
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"activation_fn": activation}))
        with pytest.raises(ModelLoadError, match=f"activation_fn '{activation}' is not supported"):
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


def test_a_pooler_that_older_transformers_left_beside_the_head_does_not_count(tmp_path) -> None:
    model, tokenizer = make_encoder("RobertaForSequenceClassification", tmp_path)
    pooler = {"roberta.pooler.dense.weight": torch.ones(48, 48), "roberta.pooler.dense.bias": torch.ones(48)}
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | pooler, file)
    expected = [sigmoid(logit_of(model, tokenizer, QUERY, "x"))]
    assert LLM(str(tmp_path), num_threads=1).score(QUERY, "x") == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "RobertaForMaskedLM", "XLMRobertaForMaskedLM"])
@pytest.mark.parametrize("saved", ["the whole", "its body", "its body, named"])
def test_vectors_come_of_the_body_whatever_was_trained_with_it(architecture, saved, tmp_path) -> None:
    model, tokenizer = make_encoder(architecture, tmp_path)
    modules = [{"type": f"sentence_transformers.models.{name}", "path": name} for name in ("Transformer", "Pooling")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "Pooling").mkdir()
    (tmp_path / "Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    if saved != "the whole":
        config = (tmp_path / "config.json").read_text()
        model.base_model.save_pretrained(tmp_path)
        if saved == "its body":
            # As Sentence Transformers has left some: the class that it began with.
            (tmp_path / "config.json").write_text(config)
        else:
            file = tmp_path / "model.safetensors"
            save_file({f"{model.base_model_prefix}.{name}": each for name, each in load_file(file).items()}, file)
    with torch.inference_mode():
        expected = model.base_model(**tokenizer(QUERY, return_tensors="pt")).last_hidden_state[0].mean(0)
    (vector,) = LLM(str(tmp_path), num_threads=1).embed(QUERY)
    np.testing.assert_allclose(vector, expected.numpy(), rtol=0, atol=1e-5)
