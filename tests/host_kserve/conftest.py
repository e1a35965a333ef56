"""The routes over an engine process with the fake executor, for the files that ask for them; some have an engine of
their own."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import openai
import pytest
from host_kserve.openai_server import clients, serve, start_engine

from octavo import AsyncEngine
from octavo_kserve.served_model import Models, ServedModel


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsyncEngine]:
    engine = start_engine(tmp_path_factory.mktemp("models"))
    yield engine
    engine.shutdown(drain_s=0)


@pytest.fixture(scope="module")
def address(engine: AsyncEngine) -> Iterator[str]:
    models = Models()
    models.add(ServedModel("org/fake", engine, 1_700_000_000, ("fake",)))
    with serve(models) as address:
        yield address


@pytest.fixture(scope="module")
def both(address: str) -> Iterator[tuple[openai.OpenAI, httpx2.Client]]:
    with clients(address) as both:
        yield both


@pytest.fixture(scope="module")
def client(both: tuple[openai.OpenAI, httpx2.Client]) -> openai.OpenAI:
    return both[0]


@pytest.fixture(scope="module")
def plain(both: tuple[openai.OpenAI, httpx2.Client]) -> httpx2.Client:
    return both[1]
