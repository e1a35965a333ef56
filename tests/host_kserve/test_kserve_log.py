"""The access log: which requests it names, and how."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

import octavo
from octavo_kserve.log import NoProbes, format_access_log


@pytest.fixture
def handler() -> Iterator[logging.Handler]:
    """The only handler of uvicorn's access log."""
    access, handler = logging.getLogger("uvicorn.access"), logging.NullHandler()
    before, access.handlers = access.handlers, [handler]
    yield handler
    access.handlers = before


def record(path: str) -> logging.LogRecord:
    """What uvicorn logs of a request."""
    arguments = ("127.0.0.1:5", "GET", path, "1.1", 200)
    return logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', arguments, None)


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/v2/health/live", "/v2/models/m/ready", "/metrics?x"])
def test_probes_and_scrapes_are_left_out(path: str) -> None:
    assert not NoProbes().filter(record(path))


@pytest.mark.parametrize("path", ["/v1/models", "/v2/models/m/infer", "/v2/models/m"])
def test_requests_are_not(path: str) -> None:
    assert NoProbes().filter(record(path))


def test_the_access_log_has_the_format_that_was_asked_for(handler: logging.Handler) -> None:
    format_access_log("%(client_addr)s asked for %(request_line)s: %(status_code)s")
    assert handler.format(record("/v1/models")) == "127.0.0.1:5 asked for GET /v1/models HTTP/1.1: 200 OK"


@pytest.mark.parametrize("text", ["%(h)s", "%(status_code)", "%(status_code)d"])
def test_a_format_that_could_not_be_filled_is_refused(handler: logging.Handler, text: str) -> None:
    with pytest.raises(octavo.InvalidRequest, match="access_log_format"):
        format_access_log(text)
    assert handler.formatter is None
