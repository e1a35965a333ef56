"""model.json: where paths point to, and what is said about a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo import ModelLoadError
from octavo_triton.model_json import read_engine_config


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
