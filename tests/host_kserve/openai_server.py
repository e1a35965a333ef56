"""A real HTTP server with the routes that generate, behind the guard and in a thread of its own, for real clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import uvicorn
from fastapi import FastAPI

from octavo import AsyncEngine, EngineConfig
from octavo.testing import make_fake_model
from octavo_kserve.anthropic import create_messages_router
from octavo_kserve.connection import ConnectionGuard
from octavo_kserve.embeddings import create_embeddings_router
from octavo_kserve.openai import create_router, create_tokenize_router
from octavo_kserve.responses import create_responses_router
from octavo_kserve.served_model import Models

START_TIMEOUT_S = 30
CONTEXT = 50_000


def start_engine(folder: Path, **settings: Any) -> AsyncEngine:
    model = make_fake_model(folder / "fake", max_position_embeddings=CONTEXT)
    defaults = {"executor": "octavo.testing:create_paced_executor", "num_gpu_blocks_override": 20_000}
    engine = AsyncEngine(EngineConfig(model=str(model), **(defaults | settings)))  # type: ignore[arg-type]
    engine.wait_ready(START_TIMEOUT_S)
    return engine


@contextmanager
def serve(models: Models) -> Iterator[str]:
    """The server's address while it runs."""
    app = FastAPI()
    for create in (create_router, create_responses_router, create_messages_router, create_embeddings_router):
        app.include_router(create(models), prefix="/v1")
    app.include_router(create_tokenize_router(models))
    app.add_middleware(ConnectionGuard, max_body_bytes=1 << 24, max_header_bytes=1 << 16)
    # Without a log of its own: that would be every later test's as well.
    quiet: dict[str, Any] = {"log_level": "warning", "log_config": None}
    config = uvicorn.Config(app, host="127.0.0.1", port=0, timeout_graceful_shutdown=5, **quiet)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until
        thread.join(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join()


@contextmanager
def clients(address: str) -> Iterator[tuple[openai.OpenAI, httpx2.Client]]:
    """The official client, and one that can say anything."""
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as official,
        httpx2.Client(base_url=address, timeout=60) as plain,
    ):
        yield official, plain
