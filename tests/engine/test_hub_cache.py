"""Models by name: folders first, then snapshots in a local Hugging Face cache that the tests write themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.checkpoint import open_checkpoint
from octavo.config import EngineConfig
from octavo.errors import ModelLoadError
from octavo.hub_cache import cache_folder
from octavo.testing import make_fake_model

COMMIT, OLD_COMMIT = "0a" * 20, "1b" * 20
VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds octo/tiny in two commits, and the model "bare"."""
    folder = tmp_path / "hub"
    for name in ("models--octo--tiny", "models--bare"):
        (folder / name / "refs").mkdir(parents=True)
        (folder / name / "refs" / "main").write_text(COMMIT)
        make_fake_model(folder / name / "snapshots" / COMMIT)
    make_fake_model(folder / "models--octo--tiny" / "snapshots" / OLD_COMMIT)
    (folder / "models--octo--tiny" / "refs" / "v1").write_text(OLD_COMMIT)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    return folder


@pytest.mark.parametrize(
    ("arguments", "commit"),
    [
        ({}, COMMIT),
        ({"revision": None}, COMMIT),
        ({"revision": "v1"}, OLD_COMMIT),
        ({"revision": OLD_COMMIT}, OLD_COMMIT),
    ],
)
def test_an_id_is_its_snapshot(cache: Path, tmp_path: Path, arguments: dict[str, object], commit: str) -> None:
    config = EngineConfig.from_mapping({"model": "octo/tiny", **arguments}, folder=tmp_path)
    assert config.model == str(cache / "models--octo--tiny" / "snapshots" / commit)
    assert open_checkpoint(config.model).vocab_size > 0


def test_a_folder_of_that_name_comes_first(cache: Path, tmp_path: Path) -> None:
    make_fake_model(tmp_path / "octo" / "tiny")
    config = EngineConfig.from_mapping({"model": "octo/tiny", "tokenizer": "octo/tiny"}, folder=tmp_path)
    assert config.model == config.tokenizer == str(tmp_path / "octo" / "tiny")


def test_a_tokenizer_may_be_an_id_with_a_revision_of_its_own(cache: Path) -> None:
    arguments = {"model": "octo/tiny", "tokenizer": "octo/tiny", "tokenizer_revision": "v1"}
    config = EngineConfig.from_mapping(arguments)
    assert config.model is not None and config.model.endswith(COMMIT)
    assert config.tokenizer is not None and config.tokenizer.endswith(OLD_COMMIT)


def test_a_bare_name_may_be_an_id_but_is_a_path_if_it_is_none(cache: Path, tmp_path: Path) -> None:
    assert str(EngineConfig.from_mapping({"model": "bare"}, folder=tmp_path).model).endswith(COMMIT)
    assert EngineConfig.from_mapping({"model": "weights"}, folder=tmp_path).model == str(tmp_path / "weights")


def test_an_id_opens_without_a_configuration_too(cache: Path) -> None:
    assert open_checkpoint("octo/tiny").path.name == COMMIT


def test_a_download_dir_is_the_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    config = EngineConfig.from_mapping({"model": "octo/tiny", "download_dir": str(cache)})
    assert str(config.model).startswith(str(cache))


def test_a_relative_download_dir_is_relative_to_the_version_folder(cache: Path) -> None:
    config = EngineConfig.from_mapping({"model": "octo/tiny", "download_dir": cache.name}, folder=cache.parent)
    assert str(config.model).startswith(str(cache))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": "octo/large"}, "revision 'main' is in the cache {cache}: .*`hf download octo/large`"),
        ({"model": "octo/tiny", "revision": "v2"}, "revision 'v2' is in .*`hf download octo/tiny --revision v2`"),
        ({"model": "octo/tiny", "revision": "../refs"}, "revision '../refs' is in"),
        ({"model": "octo/tiny", "revision": ".."}, "revision '..' is in"),
        ({"model": "a/b", "download_dir": "/c"}, "in the cache /c: .*`hf download a/b --cache-dir /c`"),
    ],
)
def test_an_id_that_is_nowhere_is_told_with_where_it_was_looked_for(
    cache: Path, tmp_path: Path, arguments: dict[str, object], said: str
) -> None:
    with pytest.raises(ModelLoadError, match=said.format(cache=cache)) as caught:
        EngineConfig.from_mapping(arguments, folder=tmp_path)
    assert f"neither the path {tmp_path}/{arguments['model']} nor a Hugging Face id" in str(caught.value)


@pytest.mark.parametrize("name", ["/no/such", "../octo", "./octo", "a/b/c", "octo/..", "octo/tiny/", "models/x.gguf/y"])
def test_what_cannot_be_an_id_is_a_path(cache: Path, tmp_path: Path, name: str) -> None:
    assert EngineConfig.from_mapping({"model": name}, folder=tmp_path).model == str((tmp_path / name).resolve())


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    found = [cache_folder()]
    for variable, folder in (("XDG_CACHE_HOME", "/xdg"), ("HF_HOME", "~/hf"), ("HF_HUB_CACHE", "/hub")):
        monkeypatch.setenv(variable, folder)
        found.append(cache_folder())
    assert [str(folder) for folder in found] == [
        "/home/me/.cache/huggingface/hub",
        "/xdg/huggingface/hub",
        "/home/me/hf/hub",
        "/hub",
    ]
