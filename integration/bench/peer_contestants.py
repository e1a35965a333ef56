"""Who is compared: each engine with its weights, the environment it runs in, and the workloads it is asked for.

Precision is what like is compared with like by. Knows no process and no figure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer_install import LLAMA_VERSION, Peers

from octavo.checkpoint import default_model

ADAPTERS = Path(__file__).parent / "peer_adapters"
OURS = "octavo"
OFFLINE = ("W1", "W2", "W3", "W4")
ONLINE = ("W5", "W6")
# The time from the start of a process to its first token; every offline contestant takes part.
START = "start"
SINGLE = ("W1", "W4")


@dataclass(frozen=True, slots=True)
class Contestant:
    """`model` is a converted model of `Peers`; None is the embedded one. `every_nth` request of a workload is run:
    rates of the slowest are those of an even sample. `server` names what answers W5 and W6.
    """

    name: str
    title: str
    precision: str
    weights: str
    environment: str
    adapter: str
    workloads: tuple[str, ...] = OFFLINE
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    every_nth: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        return self.environment == OURS

    @property
    def is_online(self) -> bool:
        return self.workloads == ONLINE


def _ours(name: str, precision: str, weights: str, model: str | None = None, **options: Any) -> Contestant:
    return Contestant(name, "Octavo", precision, weights, OURS, "octavo_engine.py", model=model, options=options)


def _openvino(name: str, weights: str, model: str, precision: str, **options: Any) -> Contestant:
    return Contestant(
        name, "OpenVINO GenAI", precision, weights, "openvino", "openvino_engine.py", model=model, options=options
    )


def _llama(name: str, weights: str, model: str | None, precision: str) -> Contestant:
    workloads = OFFLINE if precision == "bf16" else SINGLE
    return Contestant(name, "llama.cpp", precision, weights, "llama", "llama_engine.py", workloads, model)


def _transformers(
    name: str, how: str, workloads: tuple[str, ...], nth: Mapping[str, int], **options: Any
) -> Contestant:
    title = f"transformers, {how}"
    return Contestant(
        name, title, "bf16", "bf16", "transformers", "transformers_engine.py", workloads, "bf16", options, nth
    )


def _online(name: str, title: str, environment: str, server: str, model: str | None = None) -> Contestant:
    return Contestant(name, title, "bf16", "bf16", environment, server, ONLINE, model)


CONTESTANTS = (
    _ours("octavo", "bf16", "bf16"),
    Contestant("vllm", "vLLM CPU", "bf16", "bf16", "vllm", "vllm_engine.py", model="bf16"),
    _openvino("openvino", "fp16 file, computed in bf16", "openvino-bf16", "bf16"),
    # Its prefix cache is looked into when a request is submitted.
    Contestant(
        "openvino-first-ahead", "OpenVINO GenAI, the first request ahead", "bf16", "fp16 file, computed in bf16",
        "openvino", "openvino_engine.py", ("W3",), "openvino-bf16", {"first_ahead": True},
    ),
    _llama("llama", "bf16", "llama-bf16", "bf16"),
    _transformers("transformers", "one at a time", OFFLINE, {"W2": 8, "W3": 8}, batch_size=1),
    _transformers("transformers-static", "static batches of 16", ("W2", "W3"), {"W2": 2, "W3": 2}, batch_size=16),
    _transformers("transformers-continuous", "continuous batching", OFFLINE, {"W2": 2, "W3": 2}),
    _ours("octavo-int8", "int8", "int8 a channel", "bf16", quantization="int8"),
    _openvino("openvino-int8", "int8 a channel", "openvino-int8", "int8"),
    _llama("llama-int8", "Q8_0", "llama-int8", "int8"),
    _ours("octavo-4bit", "4-bit", "Q4_1 as in the embedded file", quantization="gguf"),
    _llama("llama-4bit", "Q4_1 as in the embedded file", None, "4-bit"),
    _openvino("openvino-4bit", "int4 groups, quantised anew", "openvino-4bit", "4-bit"),
    _online("octavo-kserve", "Octavo in KServe's server", OURS, "kserve"),
    _online("octavo-triton", "Octavo in the Triton server", OURS, "triton"),
    _online("vllm-server", "vLLM CPU, its OpenAI server", "vllm", "vllm", "bf16"),
    _online("llama-server", "llama.cpp's server", "llama", "llama", "llama-bf16"),
)  # fmt: skip


def settings(contestant: Contestant, peers: Peers, threads: int) -> dict[str, Any]:
    """What its adapter is told."""
    found: dict[str, Any] = {"threads": threads, "model": None} | dict(contestant.options)
    if contestant.model is not None:
        found["model"] = str(peers.model(contestant.model))
    if contestant.environment == "llama":
        found["model"] = found["model"] or str(default_model())
        found["server"] = str(peers.llama_binaries / "llama-server")
        found["version"] = f"the one in llama-cpp-python {LLAMA_VERSION}"
    return found


def python(contestant: Contestant, peers: Peers) -> str:
    """The interpreter of its adapter. llama.cpp has no Python of its own."""
    own = contestant.environment in {OURS, "llama"}
    return sys.executable if own else str(peers.python(contestant.environment))


def environment(contestant: Contestant, peers: Peers, threads: int) -> dict[str, str]:
    """The variables of its process; PYTHONPATH would mix the environments."""
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    if contestant.environment != "vllm":
        # Before an engine is loaded: its pool of threads is sized by it.
        return found | {"OMP_NUM_THREADS": str(threads)}
    return found | {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CACHE_ROOT": str(peers.folder / "vllm-cache"),
        "LD_PRELOAD": ":".join(preloaded(peers)),
    }


def preloaded(peers: Peers) -> list[str]:
    """The libraries that vLLM advises for CPUs, as far as they are there: Debian's libtcmalloc-minimal4, OpenMP."""
    found = [*Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4"), peers.folder / "vllm/lib/libiomp5.so"]
    return [str(path) for path in found if path.exists()]
