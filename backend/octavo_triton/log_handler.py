"""What Octavo logs, in the server's log. Knows no model and no request."""

from __future__ import annotations

import logging

import triton_python_backend_utils as pb_utils


class ServerLogHandler(logging.Handler):
    """Sends our log lines to the server's log; debug lines show from --log-verbose=1 on."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record; the prefix is what the launcher looks for."""
        try:
            log = pb_utils.Logger
            by_level = {logging.ERROR: log.log_error, logging.WARNING: log.log_warn, logging.DEBUG: log.log_verbose}
            write = by_level.get(record.levelno, log.log_info)
            write(f"[octavo] {self.format(record)}")
        except Exception:
            # A line that cannot be logged must not end the thread that wrote it.
            self.handleError(record)


def log_to_server() -> None:
    """Makes the server's log the place where `octavo` and this package log to."""
    for name, level in (("octavo", logging.INFO), ("octavo_triton", logging.DEBUG)):
        package_logger = logging.getLogger(name)
        package_logger.setLevel(level)
        package_logger.handlers = [ServerLogHandler()]
        package_logger.propagate = False
