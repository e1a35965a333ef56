"""The command line: KServe's flags, this server's own, and every engine argument under vLLM's name.

Dashes and underscores are the same. Knows the SDK's flags only as a parser that it is given.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import octavo
from octavo_kserve.access import KEYS_VARIABLE, read_keys

logger = logging.getLogger(__name__)

# What LLMInferenceService adds for adapters. They are not served yet; a request for one gets 404.
_ADAPTER_FLAGS = ("enable_lora", "lora_modules")
_ENGINE_FIELDS = {
    field.name: field for field in fields(octavo.EngineConfig) if field.name not in ("model", "served_model_name")
}
# KServe's flags for what this server does not do: threads for gRPC, and calls to a predictor behind a transformer.
_IDLE_FLAGS = (
    "max_threads", "protocol", "predictor_host", "predictor_protocol", "predictor_use_ssl", "predictor_request_retries",
    "predictor_request_timeout_seconds", "enable_predictor_health_check", "enable_latency_logging",
)  # fmt: skip
_PORTS = ("http_port", "grpc_port", "metrics_port")
_HIGHEST_PORT = 65535
# Each tells that this process is the only one of its container.
_CONTAINER_FILES = ("/.dockerenv", "/run/.containerenv")
_CONTAINER_VARIABLES = ("KUBERNETES_SERVICE_HOST", "K_SERVICE")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """One model to serve: its name, further names, and its engine."""

    name: str
    aliases: tuple[str, ...]
    engine: octavo.EngineConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asks for. `sdk` holds the flags that are KServe's; times are in seconds.

    `engine_arguments` are those that every model has unless it has its own.
    """

    models: tuple[ModelOptions, ...]
    engine_arguments: Mapping[str, Any]
    model_store: Path | None
    host: str
    api_keys: tuple[str, ...]
    max_body_bytes: int
    max_header_bytes: int
    drain_delay_s: float
    drain_timeout_s: float
    metrics_port: int | None
    sdk: argparse.Namespace


def parse_options(
    arguments: Sequence[str], sdk_parser: argparse.ArgumentParser, environment: Mapping[str, str] = os.environ
) -> Options:
    """Reads the command line; of a flag that is repeated, the last value counts.

    Exits for what argparse refuses. Raises InvalidRequest or ModelLoadError that names any other bad value.
    """
    parser = _create_parser(sdk_parser)
    known, rest = parser.parse_known_args(_normalized(arguments, parser))
    for name in _PORTS:
        octavo.parse_int(name, getattr(known, name, None) or 0, 0, _HIGHEST_PORT)
    if known.workers != 1:
        parser.error(f"--workers {known.workers} is not allowed; expected 1: each would load the model for itself")
    given = {name: getattr(known, name) for name in _ENGINE_FIELDS if getattr(known, name) is not None}
    given |= _unknown_flags(rest)
    ignored = [f"--{name}" for name in _ADAPTER_FLAGS if getattr(known, name) is not None]
    if ignored:
        logger.warning("adapters are not served yet: %s is ignored", ", ".join(ignored))
    idle = [f"--{name}" for name in _IDLE_FLAGS if getattr(known, name, None) != parser.get_default(name)]
    if idle:
        logger.warning("of no effect here: %s", ", ".join(idle))
    return Options(
        models=_models(known, given),
        engine_arguments=given,
        model_store=known.model_store,
        host=known.host or default_host(environment),
        api_keys=read_keys(known.api_key_file, environment),
        max_body_bytes=known.max_body_bytes,
        max_header_bytes=known.max_header_bytes,
        drain_delay_s=known.drain_delay_s,
        drain_timeout_s=known.drain_timeout_s,
        metrics_port=known.metrics_port,
        sdk=known,
    )


def default_host(environment: Mapping[str, str], root: Path = Path("/")) -> str:
    """Loopback, so that a server on somebody's machine is not open to others; in a container, every address."""
    in_container = any(environment.get(name) for name in _CONTAINER_VARIABLES) or any(
        (root / file.lstrip("/")).exists() for file in _CONTAINER_FILES
    )
    return "0.0.0.0" if in_container else "127.0.0.1"


def _create_parser(sdk_parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m octavo_kserve",
        description="Serves language models over KServe's v1 and v2 protocols and OpenAI's.",
        parents=[sdk_parser],
        allow_abbrev=False,
    )
    own = parser.add_argument_group("server")
    own.add_argument("--host", help="address to listen on (127.0.0.1, in a container 0.0.0.0)")
    own.add_argument("--model_dir", "--model", metavar="DIR", help="folder or GGUF file (the embedded default model)")
    own.add_argument("--served_model_name", nargs="+", default=[], metavar="NAME", help="further names of the model")
    own.add_argument("--models", metavar="FILE", help="JSON: several models, as engine arguments by name")
    own.add_argument("--model_store", type=Path, metavar="DIR", help="each folder in it may be loaded by request")
    own.add_argument("--metrics_port", type=int, metavar="PORT", help="/metrics there as well, without API keys")
    own.add_argument("--api_key_file", metavar="FILE", help=f"keys that clients need, as in {KEYS_VARIABLE}")
    own.add_argument("--max_body_bytes", type=_size, default=16 << 20, help="of a request; default 16 MiB")
    own.add_argument("--max_header_bytes", type=_size, default=64 << 10, help="of a request; default 64 KiB")
    own.add_argument("--drain_delay_s", type=_seconds, default=2.0, help="accept so long after SIGTERM (2)")
    own.add_argument("--drain_timeout_s", type=_seconds, default=30.0, help="let requests end for so long then (30)")
    engine = parser.add_argument_group("engine", "vLLM's names; other engine arguments of vLLM are accepted or refused")
    for name, field in _ENGINE_FIELDS.items():
        if isinstance(field.default, bool):
            engine.add_argument(f"--{name}", nargs="?", const="true", metavar="BOOL")
        else:
            engine.add_argument(f"--{name}", metavar="VALUE")
    engine.add_argument("--enable_lora", nargs="?", const="true", help=argparse.SUPPRESS)
    engine.add_argument("--lora_modules", nargs="*", help=argparse.SUPPRESS)
    return parser


def _size(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; expected a number of bytes")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not allowed; expected seconds")
    return value


def _normalized(arguments: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Flags in the spelling in which the parser has them; KServe itself uses both."""
    spelled = {_with_underscores(flag): flag for flag in parser._option_string_actions}
    result = []
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            flag = _with_underscores(flag)
            argument = spelled.get(flag, flag) + equals + value
        result.append(argument)
    return result


def _with_underscores(flag: str) -> str:
    return "--" + flag[2:].replace("-", "_") if flag.startswith("--") else flag


def _unknown_flags(rest: Sequence[str]) -> dict[str, object]:
    """Flags that are no argument of ours, by name: EngineConfig knows which of vLLM's mean nothing here."""
    found: dict[str, object] = {}
    waiting = list(reversed(rest))
    while waiting:
        flag = waiting.pop()
        if not flag.startswith("--"):
            raise octavo.InvalidRequest("argument", flag, "a flag, which begins with --")
        name, equals, value = flag[2:].partition("=")
        if equals:
            found[name] = value
        elif waiting and not waiting[-1].startswith("--"):
            found[name] = waiting.pop()
        elif name.startswith("no_"):
            found[name.removeprefix("no_")] = False
        else:
            found[name] = True
    return found


def _models(known: argparse.Namespace, engine: Mapping[str, Any]) -> tuple[ModelOptions, ...]:
    """The model of the command line, and those of the file, for which its engine arguments are defaults."""
    models = []
    if known.model_dir is not None or known.models is None:
        named = {"model": known.model_dir} if known.model_dir is not None else {}
        config = octavo.EngineConfig.from_mapping({**engine, **named}, folder=Path.cwd())
        aliases = tuple(alias for alias in dict.fromkeys(known.served_model_name) if alias != known.model_name)
        models.append(ModelOptions(known.model_name, aliases, config))
    for name, arguments in _read_models(known.models).items():
        config = octavo.EngineConfig.from_mapping({**engine, **arguments}, folder=Path(known.models).parent)
        models.append(ModelOptions(name, (), config))
    names = [name for model in models for name in (model.name, *model.aliases)]
    for name in names:
        if names.count(name) > 1:
            raise octavo.InvalidRequest("models", name, "a name that is given once")
    return tuple(models)


def _read_models(file: str | None) -> dict[str, dict[str, Any]]:
    if file is None:
        return {}
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise octavo.InvalidRequest("models", file, f"a JSON file ({error})") from None
    if not isinstance(found, dict) or not found or not all(isinstance(value, dict) for value in found.values()):
        raise octavo.InvalidRequest("models", file, 'an object like {"NAME": {"model": "DIR"}}')
    return found
