"""What a request for a vector may ask for, and what a checkpoint's own files say of its vectors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from octavo import EngineConfig, InvalidRequest, ModelLoadError, PoolingParams, cosine_similarity
from octavo.checkpoint import Checkpoint
from octavo.config import resolve
from octavo.pooling import Pooling, PoolingKind, read_pooling

MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def write_modules(folder: Path, names: list[str], modes: dict[str, object] = MEAN) -> None:
    package = "sentence_transformers.models"
    modules = [{"idx": i, "path": f"{i}_{name}", "type": f"{package}.{name}"} for i, name in enumerate(names)]
    (folder / "modules.json").write_text(json.dumps(modules))
    for i, name in enumerate(names):
        (folder / f"{i}_{name}").mkdir()
        (folder / f"{i}_{name}/config.json").write_text(json.dumps(modes))


def opened(folder: Path, architecture: str = "BertModel", **config: object) -> Checkpoint:
    config = {"architectures": [architecture], "vocab_size": 8, "max_position_embeddings": 512, **config}
    return Checkpoint(folder, config, {}, ())


def test_a_client_may_send_texts_for_numbers_and_null_for_the_default() -> None:
    params = PoolingParams.from_mapping({"dimensions": "64", "normalize": "false", "truncate_prompt_tokens": None})
    assert params == PoolingParams(dimensions=64, normalize=False)
    assert PoolingParams.from_mapping({}, normalize=True) == PoolingParams(normalize=True)
    assert PoolingParams.from_mapping({"normalize": None}, normalize=True) == PoolingParams(normalize=True)
    assert PoolingParams.parameter_names() == {"dimensions", "normalize", "truncate_prompt_tokens", "prompt_name"}


@pytest.mark.parametrize(
    ("mapping", "parameter"),
    [
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 1.5}, "dimensions"),
        ({"normalize": "maybe"}, "normalize"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"temperature": 1}, "pooling_parameters"),
        ([], "pooling_parameters"),
    ],
)
def test_anything_else_is_refused_by_name(mapping, parameter) -> None:
    with pytest.raises(InvalidRequest) as caught:
        PoolingParams.from_mapping(mapping)
    assert caught.value.parameter == parameter


def test_the_cosine_of_two_vectors() -> None:
    east, north = np.array([3.0, 0.0], np.float32), np.array([0.0, 0.5], np.float32)
    assert cosine_similarity(east, north) == 0
    assert cosine_similarity(east, -east) == -1
    assert cosine_similarity(east, east + 6 * north) == pytest.approx(math.sqrt(0.5))
    assert cosine_similarity(east, 0 * north) == 0
    third = np.full(3, 1e-30, np.float32)
    assert cosine_similarity(third, third) == pytest.approx(1)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ({"pooling_mode_mean_tokens": True}, PoolingKind.MEAN),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, PoolingKind.CLS),
        ({"pooling_mode_lasttoken": True}, PoolingKind.LAST),
        ({"pooling_mode": "lasttoken"}, PoolingKind.LAST),
        ({"pooling_mode": ["cls"], "pooling_mode_mean_tokens": True}, PoolingKind.CLS),
        ({}, PoolingKind.MEAN),
    ],
)
def test_the_modules_say_how_the_vector_is_made(tmp_path: Path, mode: dict[str, object], kind: PoolingKind) -> None:
    write_modules(tmp_path, ["Transformer", "Pooling"], mode | {"word_embedding_dimension": 8})
    assert read_pooling(opened(tmp_path)) == Pooling(kind, normalize=False)


def test_a_module_may_normalise(tmp_path: Path) -> None:
    write_modules(tmp_path, ["Transformer", "Pooling", "Normalize"])
    assert read_pooling(opened(tmp_path)) == Pooling(PoolingKind.MEAN, normalize=True)


def test_without_modules_it_goes_by_the_kind_of_model(tmp_path: Path) -> None:
    assert read_pooling(opened(tmp_path)) == Pooling(PoolingKind.MEAN, normalize=True)
    assert read_pooling(opened(tmp_path, "LlamaForCausalLM")) == Pooling(PoolingKind.LAST, normalize=True)


@pytest.mark.parametrize(
    ("names", "modes", "message"),
    [
        (["Transformer", "Pooling", "Dense"], MEAN, "module 'Dense'"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (["Transformer", "Pooling"], MEAN | {"pooling_mode_cls_token": True}, "pooling_mode_mean_tokens"),
        (["Transformer", "Pooling"], {"pooling_mode": "weightedmean"}, "weightedmean"),
        (["Transformer", "Pooling"], {"pooling_mode": ["cls", "mean"]}, "'cls', 'mean'"),
        (["Transformer", "Pooling"], {"pooling_mode": [["cls"]]}, "pooling_mode"),
        (["Transformer", "Normalize", "Pooling"], MEAN, "Transformer, Normalize, Pooling are not supported"),
        (["Transformer", "Normalize"], MEAN, "there is no module Pooling"),
    ],
)
def test_what_would_make_other_vectors_fails_the_load(tmp_path: Path, names, modes, message) -> None:
    write_modules(tmp_path, names, modes)
    with pytest.raises(ModelLoadError, match=message):
        read_pooling(opened(tmp_path))


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"path": ""}]', "null"])
def test_a_broken_list_of_modules_fails_the_load(tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"modules\.json is not a list of modules"):
        read_pooling(opened(tmp_path))


@pytest.mark.parametrize("listed", [["2", 4], [2, None], [0], [True], "4", 4])
def test_dimensions_that_are_none_fail_the_load(tmp_path: Path, listed: object) -> None:
    with pytest.raises(ModelLoadError, match="matryoshka_dimensions is"):
        read_pooling(opened(tmp_path, matryoshka_dimensions=listed))


def test_the_mean_of_a_decoder_fails_the_load(tmp_path: Path) -> None:
    write_modules(tmp_path, ["Transformer", "Pooling"])
    with pytest.raises(ModelLoadError, match="'mean' is not supported for a decoder"):
        read_pooling(opened(tmp_path, "Qwen3ForCausalLM"))


@pytest.mark.parametrize(("number", "kind"), [(0, PoolingKind.LAST), (3, PoolingKind.LAST), (1, None), (4, None)])
def test_a_gguf_file_says_how_the_vector_is_made(number: int, kind: PoolingKind | None) -> None:
    config = {"architectures": ["Qwen3ForCausalLM"], "vocab_size": 8, "gguf_pooling_type": number}
    checkpoint = Checkpoint(Path("model.gguf"), config, {}, (), gguf={})  # type: ignore[arg-type]
    assert resolve(EngineConfig(), checkpoint).runner == ("pooling" if number else "generate")
    if kind is not None:
        assert read_pooling(checkpoint) == Pooling(kind, normalize=True)
        return
    with pytest.raises(ModelLoadError, match=r"model\.gguf: pool.* is not supported"):
        read_pooling(checkpoint)


def test_a_module_of_the_folders_own_fails_the_load(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('[{"type": "custom_st.Transformer", "path": ""}]')
    with pytest.raises(ModelLoadError, match=r"module 'custom_st\.Transformer' is not supported"):
        read_pooling(opened(tmp_path))


def test_a_prompt_that_does_not_count_fails_the_load(tmp_path: Path) -> None:
    write_modules(tmp_path, ["Transformer", "Pooling"], {"pooling_mode": "mean", "include_prompt": False})
    assert read_pooling(opened(tmp_path)).kind is PoolingKind.MEAN
    prompts = {"prompts": {"query": "query: "}}
    for default in ({"default_prompt_name": "query"}, {}):
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts | default))
        with pytest.raises(ModelLoadError, match="include_prompt false is not supported"):
            read_pooling(opened(tmp_path))
    # Of the others, no vector depends on it.
    for mode, kind in (("cls", PoolingKind.CLS), ("lasttoken", PoolingKind.LAST)):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode, "include_prompt": False}))
        assert read_pooling(opened(tmp_path)).kind is kind


def test_a_masked_lm_makes_vectors_only_where_modules_say_how(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no modules\.json, which would say how BertForMaskedLM makes"):
        read_pooling(opened(tmp_path, "BertForMaskedLM"))
    write_modules(tmp_path, ["Transformer", "Pooling"])
    assert read_pooling(opened(tmp_path, "BertForMaskedLM")) == Pooling(PoolingKind.MEAN, normalize=False)


def test_an_encoder_pools_and_computes_whole_prompts(tmp_path: Path) -> None:
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    config = resolve(EngineConfig(max_num_batched_tokens=100), opened(tmp_path))
    assert (config.runner, config.max_model_len, config.max_num_batched_tokens) == ("pooling", 128, 128)
    assert not config.enable_prefix_caching
    # What the vectors were made for is no limit of the model's.
    assert resolve(EngineConfig(max_model_len=512), opened(tmp_path)).max_num_batched_tokens == 512
    with pytest.raises(ModelLoadError, match="513 is longer than the model's context of 512"):
        resolve(EngineConfig(max_model_len=513), opened(tmp_path))


def test_a_decoder_generates_unless_told_to_pool(tmp_path: Path) -> None:
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    decoder = opened(tmp_path, "LlamaForCausalLM")
    assert (resolve(EngineConfig(), decoder).runner, resolve(EngineConfig(), decoder).max_model_len) == (
        "generate",
        512,
    )
    config = resolve(EngineConfig(runner="pooling"), decoder)
    assert (config.runner, config.max_model_len, config.enable_prefix_caching) == ("pooling", 128, True)


@pytest.mark.parametrize("architecture", ["BertModel", "Qwen3Model"])
def test_a_model_without_a_last_layer_for_tokens_does_not_generate(tmp_path: Path, architecture: str) -> None:
    assert resolve(EngineConfig(), opened(tmp_path, architecture)).runner == "pooling"
    with pytest.raises(ModelLoadError, match="runner: 'generate' is not for a model without a last layer"):
        resolve(EngineConfig(runner="generate"), opened(tmp_path, architecture))


def test_a_decoder_with_modules_was_made_for_vectors(tmp_path: Path) -> None:
    write_modules(tmp_path, ["Transformer", "Pooling", "Normalize"], {"pooling_mode_lasttoken": True})
    decoder = opened(tmp_path, "Qwen3ForCausalLM")
    assert resolve(EngineConfig(), decoder).runner == "pooling"
    assert resolve(EngineConfig(runner="generate"), decoder).runner == "generate"
    assert read_pooling(decoder) == Pooling(PoolingKind.LAST, normalize=True)


@pytest.mark.parametrize("task", ["embed", "embedding"])
def test_vllms_older_name_for_the_runner(task: str) -> None:
    assert EngineConfig.from_mapping({"task": task}).runner == "pooling"
    assert EngineConfig.from_mapping({"task": "generate"}).runner == "auto"
    with pytest.raises(ModelLoadError, match="task: 'classify' is not supported yet"):
        EngineConfig.from_mapping({"task": "classify"})
