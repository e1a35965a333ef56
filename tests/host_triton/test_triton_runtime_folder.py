"""The folder of links that a server reads: its backends and ours, repositories as they are and renamed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo_triton.model_json import read_engine_config
from octavo_triton.runtime_folder import RepositoryError, assemble_backends, assemble_repositories


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A server with a backend of its own that is a library, and one that is a folder of Python."""
    root = tmp_path / "server"
    for name in ("python", "vllm"):
        (root / "backends" / name).mkdir(parents=True)
    (root / "backends/python/libtriton_python.so").touch()
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "runtime").mkdir()
    return tmp_path / "runtime"


def add_model(repository: Path, name: str, config: str, arguments: str = "{}") -> Path:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
    (repository / name / "1/model.json").write_text(arguments, encoding="utf-8")
    return repository / name


def test_our_backend_stands_beside_the_servers_own(server: Path, folder: Path) -> None:
    backends = assemble_backends(server, folder)
    assert sorted(backend.name for backend in backends.iterdir()) == ["octavo", "python", "vllm"]
    assert "octavo_triton.model" in (backends / "octavo/model.py").read_text(encoding="utf-8")
    assert not (backends / "vllm/model.py").exists()


def test_under_another_name_it_takes_the_place_of_a_python_backend(server: Path, folder: Path) -> None:
    backends = assemble_backends(server, folder, "vllm")
    shims = [(backends / name / "model.py").read_text(encoding="utf-8") for name in ("octavo", "vllm")]
    assert shims[0] == shims[1]


@pytest.mark.parametrize("name", ["python", "", "a/b", ".."])
def test_names_that_cannot_be_ours_are_refused(server: Path, folder: Path, name: str) -> None:
    with pytest.raises(RepositoryError, match=f"backend name: '{name}' is not allowed; expected letters"):
        assemble_backends(server, folder, name)


def test_under_our_own_name_repositories_are_served_as_they_are(tmp_path: Path, folder: Path) -> None:
    add_model(tmp_path / "a", "m", 'backend: "octavo"\n')
    add_model(tmp_path / "b", "n", 'backend: "vllm"\n')
    assert assemble_repositories([tmp_path / "a", tmp_path / "b"], folder) == [tmp_path / "a", tmp_path / "b"]
    assert not list(folder.iterdir())


def test_only_repositories_that_name_us_are_copied_under_another_name(tmp_path: Path, folder: Path) -> None:
    add_model(tmp_path / "a", "ours", "name: \"ours\" backend : 'octavo'\nmax_batch_size: 0\n")
    add_model(tmp_path / "a", "other", 'backend: "python"\n')
    (tmp_path / "a/README.md").touch()
    add_model(tmp_path / "b", "theirs", 'backend: "vllm"\n')
    copy, untouched = assemble_repositories([tmp_path / "a", tmp_path / "b"], folder, "vllm")
    assert untouched == tmp_path / "b"
    assert (copy / "ours/config.pbtxt").read_text(
        encoding="utf-8"
    ) == 'name: "ours" backend: "vllm"\nmax_batch_size: 0\n'
    assert (copy / "other").resolve() == tmp_path / "a/other"
    assert "'octavo'" in (tmp_path / "a/ours/config.pbtxt").read_text(encoding="utf-8")


def test_a_version_that_changes_later_is_seen_through_the_copy(tmp_path: Path, folder: Path) -> None:
    model = add_model(tmp_path / "a", "m", 'backend: "octavo"\n')
    (copy,) = assemble_repositories([tmp_path / "a"], folder, "vllm")
    (model / "1/model.json").write_text('{"seed": 1}', encoding="utf-8")
    assert (copy / "m/1/model.json").read_text(encoding="utf-8") == '{"seed": 1}'


@pytest.mark.parametrize("path", ["../weights", "$$TRITON_MODEL_DIRECTORY/weights"])
def test_paths_in_model_json_lead_to_the_same_files_from_a_copy(tmp_path: Path, folder: Path, path: str) -> None:
    model = add_model(tmp_path / "a", "m", 'backend: "octavo"\n', f'{{"model": "{path}"}}')
    (model / "weights").mkdir()
    (copy,) = assemble_repositories([tmp_path / "a"], folder, "vllm")
    assert Path(read_engine_config(copy / "m", "1").model).samefile(model / "weights")


def test_a_config_in_another_encoding_keeps_its_bytes(tmp_path: Path, folder: Path) -> None:
    model = add_model(tmp_path / "models", "old", "")
    (model / "config.pbtxt").write_bytes(b'# caf\xe9\nbackend: "octavo"\n')
    (served,) = assemble_repositories([tmp_path / "models"], folder, "vllm")
    assert (served / "old/config.pbtxt").read_bytes() == b'# caf\xe9\nbackend: "vllm"\n'


def test_a_missing_repository_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no such model repository: .*/nowhere"):
        assemble_repositories([tmp_path / "nowhere"], folder)
