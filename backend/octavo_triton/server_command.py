"""What the Triton server's command line says: a model is told of it in no other way.

Knows how the server reads options, not what any of them means.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path


def server_option(name: str, server_process: int | None = None) -> str | None:
    """The value of an option (`--name=value` or `--name value`), in lower case; the last one counts.

    None where the server, our parent process, was started without it, or its command line cannot be read.
    """
    try:
        command = Path(f"/proc/{server_process or os.getppid()}/cmdline").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    value = None
    for word, following in pairwise(command.split("\0")):
        if word == name:
            value = following
        elif word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
    return value.lower() if value is not None else None
