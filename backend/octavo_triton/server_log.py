"""What a Triton server's log tells: how a model's load goes on, and why a server ended. Knows no process."""

from __future__ import annotations

import re
from pathlib import Path


def progress_in(line: str) -> str | None:
    """What our backend says in a line of the server's log; None for a line of the server's own."""
    found = re.search(r'\[octavo\] (.*?)"?$', line)
    return found.group(1) if found else None


def failure_in(log_path: Path) -> str:
    """Why a server ended, in one line, from its log: the models that failed to load, else its last words."""
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [re.search(r"\"(failed to load '.*?' version \d+): [\w ]+: (.*)\"$", line) for line in lines]
    reasons = dict.fromkeys(f"{match.group(1)}: {_first_line(match.group(2))}" for match in found if match)
    if reasons:
        return "; ".join(reasons)
    last = [line for line in lines if line.strip()][-1:]
    return f"the server ended: {last[0].strip()}" if last else "the server ended without a word"


def _first_line(text: str) -> str:
    """An error text as the server logs it, without the exception's class and the stack behind it."""
    line = re.sub(r"^TritonModelException: ", "", text.split("\\n", 1)[0])
    missing = re.match(r"unable to find backend library for backend '([\w-]+)'", line)
    if missing is None:
        return line
    name = missing.group(1)
    return f"no backend '{name}': Octavo answers to it with --backend-name {name}, or BACKEND_NAME={name} with make"
