"""TritonPythonModel with a real engine process over the fake executor; only the server around it is a stand-in."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo import ModelLoadError
from octavo.v2.tensors import INPUTS, OUTPUTS
from octavo_triton import model as model_module
from octavo_triton.log_handler import ServerLogHandler
from octavo_triton.model import TritonPythonModel, check_numpy

pb_utils = sys.modules["triton_python_backend_utils"]
WAIT_S = 30


class ServerTensor:
    def __init__(self, name: str, value: Any) -> None:
        self._name = name
        self._array = np.array([value.encode() if isinstance(value, str) else value], dtype=np.object_)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class ServerRequest:
    def __init__(self, response_sender: Any, text: str, own_id: str = "", **parameters: Any) -> None:
        self._response_sender = response_sender
        self._own_id = own_id
        self._text = text
        self._parameters = parameters

    def get_response_sender(self) -> Any:
        return self._response_sender

    def inputs(self) -> list[ServerTensor]:
        return [ServerTensor("text_input", self._text)]

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def request_id(self) -> str:
        return self._own_id

    def timeout(self) -> int:
        return 0

    def requested_output_names(self) -> list[str]:
        return ["text_output"]


class ServerConfig:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = {"input": [], "output": [], "max_batch_size": 0} | config
        self.max_batch_size: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return self.config

    def add_input(self, entry: dict[str, Any]) -> None:
        self.config["input"].append(entry)

    def add_output(self, entry: dict[str, Any]) -> None:
        self.config["output"].append(entry)

    def set_model_transaction_policy(self, policy: dict[str, Any]) -> None:
        self.config["model_transaction_policy"] = policy

    def set_max_batch_size(self, size: int) -> None:
        self.max_batch_size = size


def arguments(repository: Path, engine_arguments: dict[str, Any]) -> dict[str, str]:
    folder = repository / "smol" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").write_text(json.dumps(engine_arguments), encoding="utf-8")
    model_config = {
        "model_transaction_policy": {"decoupled": True},
        "parameters": {"REPORT_CUSTOM_METRICS": {"string_value": "true"}},
    }
    return {
        "model_config": json.dumps(model_config),
        "model_name": "smol",
        "model_version": "1",
        "model_repository": str(repository / "smol"),
    }


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, fake_model: Path) -> Iterator[TritonPythonModel]:
    model = TritonPythonModel()
    engine = {"model": str(fake_model), "executor": "octavo.testing:create_fake_executor"}
    model.initialize(arguments(tmp_path_factory.mktemp("repository"), engine))
    yield model
    model.finalize()


@pytest.mark.slow
def test_a_bad_request_fails_alone(loaded: TritonPythonModel, make_response_sender: type[Any]) -> None:
    bad, good = make_response_sender(), make_response_sender()
    loaded.execute(
        [ServerRequest(bad, "x", temperature=-1), ServerRequest(good, "hello", max_tokens=3, ignore_eos=True)]
    )
    assert bad.final.wait(WAIT_S)
    assert good.final.wait(WAIT_S)
    assert bad.error.message.startswith("Error generating stream: temperature: -1")
    assert bad.error.code == pb_utils.TritonError.INVALID_ARG
    assert good.texts[0].startswith("hello")
    assert len(good.responses) == 1


@pytest.mark.slow
def test_a_request_whose_inputs_cannot_be_read_fails_alone(
    loaded: TritonPythonModel, make_response_sender: type[Any]
) -> None:
    class Unreadable(ServerRequest):
        def inputs(self) -> list[ServerTensor]:
            raise RuntimeError("/secret")

    bad, good = make_response_sender(), make_response_sender()
    loaded.execute([Unreadable(bad, ""), ServerRequest(good, "hello", max_tokens=3)])
    assert bad.final.wait(WAIT_S)
    assert good.final.wait(WAIT_S)
    assert "secret" not in bad.error.message
    assert good.texts


@pytest.mark.slow
def test_clients_may_use_the_same_request_id_at_the_same_time(
    loaded: TritonPythonModel, make_response_sender: type[Any]
) -> None:
    senders = [make_response_sender(), make_response_sender()]
    loaded.execute([ServerRequest(each, "hello", own_id="1", max_tokens=3) for each in senders])
    for each in senders:
        assert each.final.wait(WAIT_S)
        assert each.texts[0].startswith("hello")


@pytest.mark.slow
def test_a_requests_id_and_salt_go_through(
    loaded: TritonPythonModel,
    make_response_sender: type[Any],
    server_log: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert loaded._engine is not None
    submit, seen = loaded._engine.submit, []

    def recording(*args: Any, **settings: Any) -> Any:
        seen.append(settings)
        return submit(*args, **settings)

    monkeypatch.setattr(loaded._engine, "submit", recording)
    good, bad = make_response_sender(), make_response_sender()
    loaded.execute([ServerRequest(good, "hello", own_id="from-client", cache_salt="s", max_tokens=3)])
    loaded.execute([ServerRequest(bad, "hello", own_id="bad-one", temperature=-1)])
    assert good.final.wait(WAIT_S)
    assert bad.final.wait(WAIT_S)
    assert seen[0]["request_id"].startswith("from-client")
    assert seen[0]["cache_salt"] == "s"
    assert any("request 'from-client' has arrived" in line for line in server_log)
    assert any("request 'bad-one' is refused: temperature: -1" in line for line in server_log)


@pytest.mark.slow
def test_what_still_runs_after_the_drain_is_told_and_the_model_is_no_longer_ready(
    tmp_path: Path, fake_model: Path, make_response_sender: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "DRAIN_S", 0)
    model = TritonPythonModel()
    engine = {"model": str(fake_model), "executor": "octavo.testing:create_paced_executor"}
    model.initialize(arguments(tmp_path, engine))
    assert model.is_ready()
    running = make_response_sender()
    model.execute([ServerRequest(running, "hello", max_tokens=1000, ignore_eos=True)])
    model.finalize()
    assert not model.is_ready()
    assert running.final.is_set()
    assert running.error.code == pb_utils.TritonError.CANCELLED
    assert running.error.message.startswith("Request was cancelled")
    assert running.crashes == 0


def test_a_server_log_that_fails_breaks_nothing_else(
    server_log: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(line: str) -> None:
        raise RuntimeError("no log")

    monkeypatch.setattr(pb_utils.Logger, "log_error", broken)
    ServerLogHandler().handle(logging.makeLogRecord({"levelno": logging.ERROR, "msg": "x"}))
    assert "no log" in capsys.readouterr().err
    assert not server_log


@pytest.mark.slow
def test_a_failed_load_fails_with_its_text_and_leaves_no_engine(tmp_path: Path, fake_model: Path) -> None:
    model = TritonPythonModel()
    engine = {"model": str(fake_model), "executor": "octavo.no_such_module:create"}
    with pytest.raises(pb_utils.TritonModelException) as caught:
        model.initialize(arguments(tmp_path, engine))
    assert "octavo.no_such_module" in str(caught.value)
    assert model._engine is not None
    assert not model._engine.is_ready()


@pytest.mark.slow
def test_what_breaks_after_the_engine_is_ready_ends_the_engine(
    tmp_path: Path, fake_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no thread")

    monkeypatch.setattr(model_module, "start_reporting", broken)
    model = TritonPythonModel()
    engine = {"model": str(fake_model), "executor": "octavo.testing:create_fake_executor"}
    with pytest.raises(RuntimeError, match="no thread"):
        model.initialize(arguments(tmp_path, engine))
    assert model._engine is not None
    assert not model._engine.is_ready()


def test_a_model_with_a_response_cache_is_warned_of_its_traps(tmp_path: Path, server_log: list[str]) -> None:
    args = arguments(tmp_path, {"no_such": 1})
    args["model_config"] = json.dumps({"response_cache": {"enable": True}})
    with pytest.raises(pb_utils.TritonModelException):
        TritonPythonModel().initialize(args)
    assert any("response_cache of model smol: " in line for line in server_log)


def test_a_bad_model_json_fails_the_load_with_its_text(tmp_path: Path) -> None:
    with pytest.raises(pb_utils.TritonModelException, match="unknown engine argument 'no_such'"):
        TritonPythonModel().initialize(arguments(tmp_path, {"no_such": 1}))


def test_a_bare_config_is_completed() -> None:
    config = ServerConfig({})
    TritonPythonModel.auto_complete_config(config)
    assert [entry["name"] for entry in config.config["input"]] == [spec.name for spec in INPUTS]
    assert [entry["name"] for entry in config.config["output"]] == [spec.name for spec in OUTPUTS]
    assert config.config["model_transaction_policy"] == {"decoupled": True}
    assert config.max_batch_size == 0


def test_what_a_config_says_is_kept() -> None:
    text_input = {"name": "text_input", "data_type": "TYPE_STRING", "dims": [1]}
    config = ServerConfig({"input": [text_input], "model_transaction_policy": {"decoupled": False}})
    TritonPythonModel.auto_complete_config(config)
    assert [entry["name"] for entry in config.config["input"]].count("text_input") == 1
    assert config.config["model_transaction_policy"] == {"decoupled": False}


def test_a_batch_size_is_refused() -> None:
    with pytest.raises(pb_utils.TritonModelException, match="max_batch_size: 8 is not allowed; expected 0"):
        TritonPythonModel.auto_complete_config(ServerConfig({"max_batch_size": 8}))


def test_numpy_2_under_an_old_server_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module.np, "__version__", "2.4.6")
    monkeypatch.setattr(pb_utils.InferenceResponse.__init__, "__doc__", "(self, output_tensors, error=None)")
    with pytest.raises(ModelLoadError, match=r"numpy 2\.4\.6.*pip install --no-deps 'numpy<2'"):
        check_numpy()
    monkeypatch.setattr(
        pb_utils.InferenceResponse.__init__, "__doc__", "(self, output_tensors, error=None, parameters)"
    )
    check_numpy()
