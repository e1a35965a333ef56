"""Which names of a store lead to a model, and with which engine arguments."""

from __future__ import annotations

from pathlib import Path

import pytest

import octavo
from octavo.testing import make_fake_model
from octavo_kserve.model_store import ModelStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with the models `a` and `b.gguf` and what is no model, beside a model that is none of it."""
    make_fake_model(tmp_path / "outside")
    make_fake_model(tmp_path / "store/a")
    (tmp_path / "store/.hidden").mkdir()
    (tmp_path / "store/b.gguf").touch()
    (tmp_path / "store/notes.md").touch()
    return tmp_path / "store"


def test_what_lies_in_the_store_is_a_model_of_that_name(folder: Path) -> None:
    store = ModelStore(folder, {"seed": 7})
    assert store.names() == ["a", "b.gguf"]
    found = store.find("a")
    assert found is not None
    assert (found.name, found.aliases, found.engine.model, found.engine.seed) == ("a", (), str(folder / "a"), 7)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../outside", "a/../../outside", "a/", "/", ".hidden", "a\n", "nobody", "notes.md"]
)
def test_no_other_name_leads_anywhere(folder: Path, name: str) -> None:
    assert ModelStore(folder, {}).find(name) is None


def test_a_store_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(octavo.InvalidRequest, match="model_store"):
        ModelStore(tmp_path / "missing", {})
