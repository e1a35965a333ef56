"""`python -m octavo_kserve`: serves models until it is told to stop. Only wires options and server together."""

from __future__ import annotations

import logging
import sys

import kserve.model_server as model_server

import octavo
from octavo_kserve.log import configure_log
from octavo_kserve.options import parse_options
from octavo_kserve.server import OctavoServer

logger = logging.getLogger("octavo_kserve")


def main() -> int:
    """The exit code: 0 after a drain, 1 when a model could not be loaded or has died, 2 for a bad command line."""
    configure_log()
    try:
        server = OctavoServer(parse_options(sys.argv[1:], model_server.parser))
    except octavo.OctavoError as error:
        logger.error("%s", error)
        return 2
    try:
        server.start()
    except octavo.OctavoError as error:
        logger.error("%s", error)
        return 1
    return 1 if server.failure is not None else 0


if __name__ == "__main__":
    sys.exit(main())
