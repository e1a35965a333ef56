"""The command line, with a parser that stands for the SDK's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

import octavo
from octavo_kserve.options import Options, default_host, parse_options


def parse(*arguments: str, environment: dict[str, str] | None = None) -> Options:
    """Options of a command line; the stand-in has what the server reads of the SDK's flags, in both spellings."""
    sdk = argparse.ArgumentParser(add_help=False)
    sdk.add_argument("--model_name", default="model")
    sdk.add_argument("--workers", type=int, default=1)
    sdk.add_argument("--max_threads", type=int, default=4)
    sdk.add_argument("--http_port", type=int, default=8080)
    sdk.add_argument("--timeout-keep-alive", type=int, default=65)
    return parse_options(arguments, sdk, environment or {})


@pytest.fixture(autouse=True)
def default_model(fake_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is served when no model is named."""
    monkeypatch.setenv("OCTAVO_DEFAULT_MODEL", str(fake_model))
    return fake_model


@pytest.mark.parametrize("spelling", ["--max_model_len", "--max-model-len"])
def test_dashes_and_underscores_are_the_same(spelling: str) -> None:
    assert parse(spelling, "64").models[0].engine.max_model_len == 64
    assert parse(f"{spelling}=64").models[0].engine.max_model_len == 64


@pytest.mark.parametrize("spelling", ["--timeout-keep-alive", "--timeout_keep_alive"])
def test_the_flags_of_the_sdk_are_too(spelling: str) -> None:
    assert parse(spelling, "5").sdk.timeout_keep_alive == 5


def test_the_last_value_of_a_flag_counts() -> None:
    options = parse("--model_name=a", "--seed=1", "--model-name", "b", "--seed", "2")
    assert (options.models[0].name, options.models[0].engine.seed) == ("b", 2)


def test_a_model_has_its_folder_and_further_names(fake_model: Path) -> None:
    (model,) = parse("--model_dir", str(fake_model), "--served-model-name", "x", "y", "--model_name=m").models
    assert (model.name, model.aliases, model.engine.model) == ("m", ("x", "y"), str(fake_model))


def test_without_a_folder_the_default_model_is_served() -> None:
    assert parse().models[0].engine.model is None


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--enable-prefix-caching", True),
        ("--no-enable-prefix-caching", False),
        ("--enable_prefix_caching=false", False),
    ],
)
def test_switches_are_spelled_as_vllm_spells_them(flag: str, value: bool) -> None:
    assert parse(flag).models[0].engine.enable_prefix_caching is value


def test_what_an_inference_service_of_adapters_adds_is_tolerated(caplog: pytest.LogCaptureFixture) -> None:
    injected = ["--enable-lora", "--max-lora-rank=16", "--max-loras=2", "--max-cpu-loras=4"]
    injected += ["--lora-modules", '{"name": "a"}', '{"name": "b"}', "--otlp-traces-endpoint", "http://x"]
    injected += ["--collect-detailed-traces", "all", "--seed", "3"]
    assert parse(*injected).models[0].engine.seed == 3
    assert "adapters are not served yet: --enable_lora, --lora_modules" in caplog.text


def test_a_flag_of_kserve_that_does_nothing_here_is_named(caplog: pytest.LogCaptureFixture) -> None:
    parse("--max_threads=4")
    assert not caplog.text
    parse("--max-threads=8")
    assert "of no effect here: --max_threads" in caplog.text


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--max_model_length", "5"], "max_model_len"),
        (["--tensor-parallel-size", "2"], "tensor_parallel_size"),
        (["--max_model_len", "many"], "max_model_len"),
        (["stray"], "stray"),
        (["--api_key_file", "/nowhere"], "api_key_file"),
        (["--models", "/nowhere"], "models"),
        (["--http_port", "65536"], "http_port"),
        (["--metrics_port", "-1"], "metrics_port"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(flags: list[str], word: str) -> None:
    with pytest.raises(octavo.OctavoError, match=word):
        parse(*flags)


@pytest.mark.parametrize("flags", [["--workers", "2"], ["--max_body_bytes", "0"], ["--drain_timeout_s", "-1"]])
def test_what_the_server_cannot_do_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(*flags)
    assert flags[0] in capsys.readouterr().err


def test_a_file_names_several_models_for_which_flags_are_defaults(tmp_path: Path, fake_model: Path) -> None:
    file = tmp_path / "models.json"
    file.write_text(json.dumps({"a": {"model": str(fake_model)}, "b": {"model": str(fake_model), "seed": 2}}))
    a, b = parse("--models", str(file), "--seed=1").models
    assert (a.name, a.engine.seed, b.name, b.engine.seed) == ("a", 1, "b", 2)
    named = parse("--models", str(file), "--model_name=c", f"--model_dir={fake_model}").models
    assert [model.name for model in named] == ["c", "a", "b"]


@pytest.mark.parametrize("alias", [[], ["--served_model_name", "a"]])
def test_a_name_of_two_models_is_refused(tmp_path: Path, fake_model: Path, alias: list[str]) -> None:
    (tmp_path / "models.json").write_text(json.dumps({"a": {"model": str(fake_model)}}))
    flags = ["--models", str(tmp_path / "models.json"), "--model_dir", str(fake_model)]
    with pytest.raises(octavo.InvalidRequest, match="models: 'a'"):
        parse(*flags, *(alias or ["--model_name", "a"]))


def test_a_name_of_one_model_may_be_given_twice() -> None:
    (model,) = parse("--model_name=m", "--served_model_name", "m", "x", "x").models
    assert model.aliases == ("x",)


@pytest.mark.parametrize("text", ["[]", "{}", '{"a": 1}', "{"])
def test_a_file_of_models_that_holds_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "models.json").write_text(text)
    with pytest.raises(octavo.InvalidRequest, match="models"):
        parse("--models", str(tmp_path / "models.json"))


def test_only_a_container_listens_on_every_address(tmp_path: Path) -> None:
    assert default_host({}, tmp_path) == "127.0.0.1"
    assert default_host({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path) == "0.0.0.0"
    (tmp_path / ".dockerenv").touch()
    assert default_host({}, tmp_path) == "0.0.0.0"
    assert parse("--host", "::1").host == "::1"


def test_keys_come_from_the_file_and_the_environment(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a\nb\n")
    options = parse("--api-key-file", str(tmp_path / "keys"), environment={"OCTAVO_API_KEYS": "c, d"})
    assert sorted(options.api_keys) == ["a", "b", "c", "d"]
    (tmp_path / "keys").write_text("a", encoding="utf-8-sig")
    assert parse("--api-key-file", str(tmp_path / "keys")).api_keys == ("a",)


def test_a_server_that_was_meant_to_have_keys_does_not_start_without(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(octavo.InvalidRequest, match="at least one key"):
        parse("--api-key-file", str(tmp_path / "keys"))
    with pytest.raises(octavo.InvalidRequest, match="at least one key"):
        parse(environment={"OCTAVO_API_KEYS": ""})


def test_a_command_line_for_vllm_says_which_parsers_there_are() -> None:
    flags = ["--enable-auto-tool-choice", "--tool-call-parser", "llama3_json", "--reasoning-parser=qwen3"]
    engine = parse(*flags).models[0].engine
    assert (engine.tool_call_parser, engine.reasoning_parser) == ("llama3_json", "qwen3")
    with pytest.raises(octavo.ModelLoadError, match=r"tool_call_parser: 'xml' .* one of auto, none, hermes"):
        parse("--tool-call-parser", "xml")
