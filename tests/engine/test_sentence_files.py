"""What the files of Sentence Transformers want done to texts, and that it is done; what cannot be done is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo import LLM, InvalidRequest, ModelLoadError, PoolingParams, TextPair
from octavo.checkpoint import Checkpoint
from octavo.sentence_files import TextSettings, read_activation, read_text_settings, reads_lower_case
from octavo.testing import fake_embedding

FAKE = "octavo.testing:create_fake_executor"
GENERAL = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
PROMPTS = {"query": "query: ", "document": None}


def opened(folder: Path, architecture: str = "BertModel", **config: object) -> Checkpoint:
    return Checkpoint(folder, {"architectures": [architecture], "vocab_size": 8} | config, {}, ())


@pytest.fixture
def model_with(fake_model: Path, tmp_path: Path) -> Callable[..., LLM]:
    """The fake model with more files in its folder."""

    def make(**files: dict[str, object]) -> LLM:
        folder = tmp_path / "model"
        shutil.copytree(fake_model, folder)
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return LLM(str(folder), executor=FAKE, runner="pooling")

    return make


def expected(text: str) -> list[float]:
    return fake_embedding(list(text.encode()))


def test_the_default_prompt_is_put_before_every_text(model_with: Callable[..., LLM]) -> None:
    llm = model_with(config_sentence_transformers={"prompts": PROMPTS, "default_prompt_name": "query"})
    assert llm.embed("sea")[0].tolist() == expected("query: sea")
    assert llm.embed("sea", PoolingParams(truncate_prompt_tokens=8))[0].tolist() == expected("query: s")
    assert llm.embed([[97, 98]])[0].tolist() == fake_embedding([97, 98])
    assert llm.embed("sea", PoolingParams(prompt_name="document"))[0].tolist() == expected("sea")
    with pytest.raises(InvalidRequest, match="prompt_name: 'verse' is not allowed; expected one of query, document"):
        llm.embed("sea", PoolingParams(prompt_name="verse"))
    with pytest.raises(InvalidRequest, match="prompt_name: 'query' is not allowed; expected null: nothing is put"):
        llm.embed([[97, 98]], PoolingParams(prompt_name="query"))


def test_other_prompts_are_for_those_who_name_them(model_with: Callable[..., LLM]) -> None:
    llm = model_with(config_sentence_transformers={"prompts": PROMPTS})
    assert llm.embed("sea")[0].tolist() == expected("sea")
    assert llm.embed("sea", PoolingParams(prompt_name="query"))[0].tolist() == expected("query: sea")


def test_texts_lose_their_capitals_where_the_folder_says_so(model_with: Callable[..., LLM]) -> None:
    llm = model_with(sentence_bert_config={"do_lower_case": True})
    assert llm.embed("ÄB c")[0].tolist() == expected("äb c")
    assert llm.tokenizer.encode("ÄB") == list("äb".encode())


@pytest.mark.parametrize("limit", [None, 3])
def test_a_text_is_read_once_cut_or_not(model_with: Callable[..., LLM], limit: int | None) -> None:
    llm = model_with()
    backend, texts = llm.tokenizer._backend, list[str]()

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(backend, name)

        def encode(self, text: str, **options: bool) -> object:
            texts.append(text)
            return backend.encode(text, **options)

    llm.tokenizer._backend = Counting()  # type: ignore[assignment]
    llm.embed("a longer text", PoolingParams(truncate_prompt_tokens=limit))
    assert texts == ["a longer text"]


def test_a_pair_of_texts_is_for_models_that_score_pairs(model_with: Callable[..., LLM]) -> None:
    with pytest.raises(InvalidRequest, match=r"model 'model' makes embeddings.*it reads no pairs of texts"):
        model_with().embed([TextPair("a", "b")])


def test_a_folder_without_such_files_wants_nothing(tmp_path: Path) -> None:
    assert read_text_settings(opened(tmp_path)) == TextSettings()
    assert read_activation(opened(tmp_path)) is None


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
def test_older_models_have_a_name_of_their_own_for_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / f"sentence_{name}_config.json").write_text('{"max_seq_length": 12}')
    assert read_text_settings(opened(tmp_path)) == TextSettings(max_seq_length=12)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (GENERAL, {"default_prompt_name": "query"}, r"default_prompt_name 'query' is not among the prompts \[\]"),
        (GENERAL, {"prompts": {"a": "b"}, "default_prompt_name": ["a"]}, r"default_prompt_name \['a'\] is not among"),
        (GENERAL, {"prompts": ["a"]}, "prompts is"),
        (GENERAL, {"prompts": {"a": 5}}, "prompts is"),
        (TRANSFORMER, {"query_length": 32}, "query_length 32 is not supported"),
        (TRANSFORMER, {"processing_kwargs": {"text": {"max_length": 7}}}, "processing_kwargs"),
        (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'"),
        (TRANSFORMER, {"modality_config": {"message": {}}}, r"modality_config \['message'\]"),
        *((TRANSFORMER, {"max_seq_length": length}, "max_seq_length is") for length in ("256", 0, -1, True, [1])),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path, file: str, content: object, message: str) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match=f"{file}: {message}"):
        read_text_settings(opened(tmp_path))


def test_only_whether_there_are_capitals_counts_for_a_model_that_writes(tmp_path: Path) -> None:
    (tmp_path / TRANSFORMER).write_text('{"transformer_task": "text-generation", "do_lower_case": true}')
    assert reads_lower_case(opened(tmp_path, "Qwen3ForCausalLM"))
    (tmp_path / TRANSFORMER).write_text('{"do_lower_case": "yes"}')
    with pytest.raises(ModelLoadError, match=f"{TRANSFORMER}: do_lower_case is 'yes'"):
        reads_lower_case(opened(tmp_path))


def test_who_says_what_becomes_of_a_cross_encoders_number(tmp_path: Path) -> None:
    old = {"sbert_ce_default_activation_function": "torch.nn.Identity"}
    assert read_activation(opened(tmp_path, **old)) == "torch.nn.Identity"
    newer = {"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}
    assert read_activation(opened(tmp_path, **old, **newer)) == "torch.nn.Sigmoid"
    (tmp_path / GENERAL).write_text('{"activation_fn": "torch.nn.Tanh"}')
    assert read_activation(opened(tmp_path, **old, **newer)) == "torch.nn.Tanh"
