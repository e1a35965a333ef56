"""What the server logs: our lines beside the SDK's, without a line for every probe. Knows no model."""

from __future__ import annotations

import logging
import re

from uvicorn.logging import AccessFormatter

import octavo

_PROBES = re.compile(r"(/|/health|/metrics|/v2/health/\w+|/v[12]/models/[^/]+/ready)(\?.*)?")
_FORMAT = "%(asctime)s.%(msecs)03d %(process)s %(name)s %(levelname)s %(message)s"


class NoProbes(logging.Filter):
    """Keeps probes and scrapes out of uvicorn's access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log it: uvicorn's arguments are the client, the method, the path, ..."""
        arguments = record.args
        path = arguments[2] if isinstance(arguments, tuple) and len(arguments) > 2 else ""
        return not (isinstance(path, str) and _PROBES.fullmatch(path))


def configure_log() -> None:
    """Writes what `octavo` and this package log to stderr, as the SDK does with its own lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%Y-%m-%d %H:%M:%S"))
    for name in ("octavo", "octavo_kserve"):
        package = logging.getLogger(name)
        package.setLevel(logging.INFO)
        package.handlers = [handler]
        package.propagate = False
    # Two lines a request, probes included.
    logging.getLogger("kserve.trace").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").addFilter(NoProbes())


def format_access_log(text: str) -> None:
    """Writes a request as `text` has it, with uvicorn's names for its fields. Raises InvalidRequest for others.

    The SDK has configured logging before.
    """
    sample = logging.LogRecord(
        "", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', ("::1", "GET", "/", "1.1", 200), None
    )
    try:
        formatter = AccessFormatter(text)
        formatter.format(sample)
    except (KeyError, ValueError, TypeError) as error:
        allowed = f"a format of %(client_addr)s, %(request_line)s, %(status_code)s and logging's own fields ({error})"
        raise octavo.InvalidRequest("access_log_format", text, allowed) from None
    for handler in logging.getLogger("uvicorn.access").handlers:
        handler.setFormatter(formatter)
