"""model.json: where paths point to, and what is said about a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo import ModelLoadError
from octavo_triton.model_json import Instance, read_engine_config


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "smol" / "3").mkdir(parents=True)
    return tmp_path / "smol"


def write(model: Path, text: str) -> None:
    (model / "3" / "model.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/models/x", "/models/x"),
        ("weights", "{model}/3/weights"),
        ("../shared", "{model}/shared"),
        ("$$TRITON_MODEL_DIRECTORY/weights", "{model}/weights"),
        ("$$TRITON_MODEL_DIRECTORY", "{model}"),
    ],
)
def test_a_models_path(model: Path, path: str, expected: str) -> None:
    write(model, json.dumps({"model": path, "tokenizer": path}))
    config = read_engine_config(model, "3")
    assert config.model == config.tokenizer == expected.format(model=model)


def test_an_empty_object_is_the_default_model(model: Path) -> None:
    write(model, "{}")
    assert read_engine_config(model, "3").model is None


def test_a_folder_given_relative_to_the_working_directory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(model, '{"model": "weights"}')
    monkeypatch.chdir(model.parent)
    assert read_engine_config(Path("smol"), "3").model == f"{model}/3/weights"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "model.json' is not a JSON file"),
        ("[]", "model.json' must hold a JSON object"),
        ('{"no_such_argument": 1}', "unknown engine argument 'no_such_argument'"),
        ('{"block_size": 12}', "engine argument block_size: 12"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(model: Path, text: str, said: str) -> None:
    write(model, text)
    with pytest.raises(ModelLoadError, match=said):
        read_engine_config(model, "3")


def test_a_missing_file_is_told_in_the_contracts_words(model: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"'model.json' containing .* engine args must be provided in '.*/smol/3'"):
        read_engine_config(model, "3")


def test_a_model_folder_that_is_a_link_is_the_folder_it_leads_to(model: Path, tmp_path: Path) -> None:
    """As where a repository is put together out of links, a Kubernetes volume say."""
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "smol").symlink_to(model)
    for path, expected in (("$$TRITON_MODEL_DIRECTORY/../w", "w"), ("../../w", "w"), ("weights", "smol/3/weights")):
        write(model, json.dumps({"model": path}))
        config = read_engine_config(tmp_path / "repository" / "smol", "3")
        assert config.model is not None
        assert Path(config.model).resolve() == tmp_path / expected


def test_a_version_folder_that_is_a_link_has_its_own_surroundings(model: Path, tmp_path: Path) -> None:
    (model / "3").rename(tmp_path / "elsewhere")
    (model / "3").symlink_to(tmp_path / "elsewhere")
    write(model, '{"model": "../weights", "tokenizer": "$$TRITON_MODEL_DIRECTORY/weights"}')
    config = read_engine_config(model, "3")
    assert config.model == str(tmp_path / "weights")
    assert config.tokenizer == str(model / "weights")


@pytest.mark.parametrize("value", [True, "true", "True"])
def test_lora_without_its_file_is_told_in_the_contracts_words(model: Path, value: object) -> None:
    write(model, json.dumps({"enable_lora": value}))
    with pytest.raises(ModelLoadError) as caught:
        read_engine_config(model, "3")
    assert str(caught.value) == f"Triton backend cannot find {model}/3/multi_lora.json."
    (model / "3" / "multi_lora.json").write_text('{"a": "/loras/a"}', encoding="utf-8")
    with pytest.raises(ModelLoadError, match=r"enable_lora: .* is not supported yet"):
        read_engine_config(model, "3")


@pytest.mark.parametrize(
    ("instance", "device", "expected"),
    [
        (Instance("MODEL"), None, "auto"),
        (Instance("MODEL"), "cuda:1", "cuda:1"),
        (Instance("CPU", 0), None, "cpu"),
        (Instance("CPU", 0), "cpu", "cpu"),
        (Instance("GPU", 2), None, "cuda:2"),
        (Instance("GPU", 2), "auto", "cuda:2"),
        (Instance("GPU", 2), "cuda", "cuda:2"),
        (Instance("GPU", 2), "cuda:2", "cuda:2"),
    ],
)
def test_an_instance_group_places_the_engine(
    model: Path, instance: Instance, device: str | None, expected: str
) -> None:
    write(model, json.dumps({"device": device}))
    assert read_engine_config(model, "3", instance).device == expected


@pytest.mark.parametrize(
    ("instance", "device", "said"),
    [
        (Instance("CPU", 0), "cuda", "has device: 'cuda', but the instance group in config.pbtxt is KIND_CPU"),
        (Instance("GPU", 1), "cuda:0", "has device: 'cuda:0', but .* is KIND_GPU, device 1: leave device out"),
        (Instance("GPU", 1), "cpu", "has device: 'cpu', but .* is KIND_GPU, device 1"),
    ],
)
def test_a_device_beside_another_instance_group_is_refused(
    model: Path, instance: Instance, device: str, said: str
) -> None:
    write(model, json.dumps({"device": device}))
    with pytest.raises(ModelLoadError, match=said):
        read_engine_config(model, "3", instance)


@pytest.mark.parametrize("sizes", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": "2"}])
def test_several_gpus_need_kind_model(model: Path, sizes: dict[str, object]) -> None:
    write(model, json.dumps(sizes))
    with pytest.raises(ModelLoadError) as caught:
        read_engine_config(model, "3", Instance("GPU", 0))
    assert str(caught.value) == (
        "KIND_GPU is currently for single-GPU models, please specify KIND_MODEL in the model's config.pbtxt for "
        "multi-GPU models"
    )
    with pytest.raises(ModelLoadError, match=r"_parallel_size: .* is not supported yet"):
        read_engine_config(model, "3", Instance("MODEL"))


@pytest.mark.parametrize(
    ("args", "instance"),
    [
        ({"model_instance_kind": "GPU", "model_instance_device_id": "1"}, Instance("GPU", 1)),
        ({"model_instance_kind": "KIND_GPU", "model_instance_device_id": "0"}, Instance("GPU", 0)),
        ({"model_instance_kind": "CPU", "model_instance_device_id": "0"}, Instance("CPU", 0)),
        ({}, Instance("MODEL", -1)),
    ],
)
def test_what_the_server_tells_of_an_instance(args: dict[str, str], instance: Instance) -> None:
    assert Instance.from_args(args) == instance
