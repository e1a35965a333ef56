"""The conformance suite against both hosts, each a real server asked by real clients, and `octavo.LLM` offline.

Over the fake executor every check; on the embedded model those of texts, which must be one and the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from kserve_hosts import GenerateHost, OpenAIHost
from kserve_server import KServeServer, fake_arguments
from model_repositories import FAST, KIND_MODEL, REPORTING, add_fake_model, killed_afterwards, options_for
from triton_host import TritonHost, TritonHostWithCodes

from octavo import LLM
from octavo.testing import HOST_CHECKS, HostFacts, check_host, make_fake_model
from octavo_triton.launch import TritonServer

pytestmark = pytest.mark.slow

FACTS = HostFacts(max_model_len=10_000, max_num_seqs=4, max_waiting=3)
ENGINE = {name: getattr(FACTS, name) for name in ("max_model_len", "max_num_seqs", "max_waiting")}
EMBEDDED_FACTS = HostFacts(max_model_len=1024, max_num_seqs=64, max_waiting=1024)
*WHILE_IT_RUNS, AT_ITS_END = HOST_CHECKS
OF_TEXTS = ["whole_answers_are_their_pieces", "seeded_texts_are_always_the_same"]

Server = KServeServer | TritonServer


def fake_kserve(folder: Path, server_dir: Path) -> AbstractContextManager[Server]:
    return KServeServer(folder / "log", *fake_arguments(folder, **ENGINE), "--drain_delay_s=0.5")


def fake_triton(folder: Path, server_dir: Path) -> AbstractContextManager[Server]:
    add_fake_model(folder / "models", "fake", KIND_MODEL + REPORTING, **ENGINE)
    return killed_afterwards(options_for(folder / "models", server_dir, load_models=None))


# A server of each platform, by the fixture that runs it or what starts it; and what asks it.
FAKE = {
    "kserve generate": ("fake_kserve_server", GenerateHost),
    "kserve openai": ("fake_kserve_server", OpenAIHost),
    "triton": ("fake_triton_server", TritonHostWithCodes),
}
EMBEDDED = {
    "kserve generate": ("kserve_server", GenerateHost),
    "kserve openai": ("kserve_server", OpenAIHost),
    "triton": ("triton_server", TritonHost),
}
ENDING: dict[str, tuple[Callable[[Path, Path], AbstractContextManager[Server]], Any]] = {
    "kserve generate": (fake_kserve, GenerateHost),
    "kserve openai": (fake_kserve, OpenAIHost),
    "triton": (fake_triton, TritonHost),
}


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """The fake model without any server."""
    model = make_fake_model(tmp_path_factory.mktemp("offline"), max_position_embeddings=FACTS.max_model_len)
    return LLM(str(model), executor=FAST)


@pytest.fixture(scope="module")
def fake_kserve_server(tmp_path_factory: pytest.TempPathFactory, server_dir: Path) -> Iterator[Server]:
    with fake_kserve(tmp_path_factory.mktemp("kserve"), server_dir) as server:
        yield server


@pytest.fixture(scope="module")
def fake_triton_server(tmp_path_factory: pytest.TempPathFactory, server_dir: Path) -> Iterator[Server]:
    with fake_triton(tmp_path_factory.mktemp("triton"), server_dir) as server:
        yield server


@pytest.fixture(scope="module")
def embedded_offline() -> LLM:
    """The embedded model without any server."""
    return LLM(max_model_len=EMBEDDED_FACTS.max_model_len)


@pytest.mark.parametrize(("server", "host_of"), FAKE.values(), ids=FAKE)
@pytest.mark.parametrize("check", WHILE_IT_RUNS)
def test_a_server_passes(request: pytest.FixtureRequest, offline: LLM, check: str, server: str, host_of: Any) -> None:
    with closing(host_of(request.getfixturevalue(server), "fake", FACTS)) as host:
        check_host(host, offline, [check])


@pytest.mark.parametrize(("server", "host_of"), EMBEDDED.values(), ids=EMBEDDED)
def test_texts_of_the_embedded_model_are_the_same_everywhere(
    request: pytest.FixtureRequest, embedded_offline: LLM, server: str, host_of: Any
) -> None:
    with closing(host_of(request.getfixturevalue(server), "smollm2", EMBEDDED_FACTS)) as host:
        check_host(host, embedded_offline, OF_TEXTS)


@pytest.mark.parametrize(("start", "host_of"), ENDING.values(), ids=ENDING)
def test_a_server_ends_well(tmp_path: Path, server_dir: Path, offline: LLM, start: Any, host_of: Any) -> None:
    with start(tmp_path, server_dir) as server, closing(host_of(server, "fake", FACTS)) as host:
        check_host(host, offline, [AT_ITS_END])
