"""Where compiled kernels are kept, those in C and those of the Triton language. Knows neither.

OCTAVO_KERNEL_CACHE names the folder: one that was filled ahead of time, in an image, may be read-only. Else it is in
the user's cache folder.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

VARIABLE = "OCTAVO_KERNEL_CACHE"
LANGUAGE_FOLDER = "triton"
"""What the Triton language keeps there, a folder a kernel. It notes absolute paths: the folder must not be moved."""


@cache
def cache_folder() -> Path:
    """A folder that can be written. Where the one named, or the user's, cannot be, it is a private temporary one.

    In that one lie links to what the named one has; what is compiled besides is lost with it.
    """
    named = os.environ.get(VARIABLE)
    if named:
        folder = Path(named).absolute()
        return folder if _can_write(folder) else _linked(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "octavo"
    except RuntimeError:
        # Nobody's home.
        return _temporary()
    # What lies in a folder of somebody else's is not ours to run, unless we were told to.
    return folder if _can_write(folder) and folder.stat().st_uid == os.geteuid() else _temporary()


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _linked(folder: Path) -> Path:
    own = _temporary()
    (own / LANGUAGE_FOLDER).mkdir()
    for place in (Path(), Path(LANGUAGE_FOLDER)):
        for entry in (folder / place).iterdir() if (folder / place).is_dir() else ():
            if entry.name != LANGUAGE_FOLDER:
                (own / place / entry.name).symlink_to(entry)
    return own


def _temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="octavo-"))
