"""Finds a model by what a model.json calls it: a path, or a Hugging Face id whose snapshot lies in the local cache.

Only looks at folders; knows no network and opens no model. The cache's layout is the Hub library's:
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import ModelLoadError

_DEFAULT_REVISION = "main"
# "org/name", or the bare name that the oldest models have.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]*\w)?")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model is looked for: a path below `folder`, a Hugging Face id in `cache` at `revision`; None: default."""

    folder: Path | None = None
    cache: str | None = None
    revision: str | None = None


def locate(name: str, origin: Origin = Origin()) -> str:
    """The path of a model that is named by a path or a Hugging Face id.

    What exists as a path comes before the cache. A path is not looked at further: opening the model tells what is
    wrong with it. Raises ModelLoadError for an "org/name" that is in neither place.
    """
    path = name if origin.folder is None else str((origin.folder / name).resolve())
    if os.path.isabs(name) or os.path.exists(path) or not _HUB_ID.fullmatch(name):
        return path
    cache = cache_folder() if origin.cache is None else (origin.folder or Path()) / Path(origin.cache).expanduser()
    snapshot = find_snapshot(cache, name, origin.revision or _DEFAULT_REVISION)
    if snapshot is not None:
        return str(snapshot)
    # A bare name is far more often a folder's than a model's.
    if "/" not in name:
        return path
    command = f"hf download {name}"
    command += f" --revision {origin.revision}" if origin.revision else ""
    command += f" --cache-dir {cache}" if origin.cache else ""
    raise ModelLoadError(
        f"no such model: {name!r} is neither the path {path} nor a Hugging Face id whose revision "
        f"{origin.revision or _DEFAULT_REVISION!r} is in the cache {cache}: name a folder or a GGUF file, or run "
        f"`{command}`"
    )


def cache_folder() -> Path:
    """Where the Hub library keeps what it downloads, by its own environment variables."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{user_cache}/huggingface").expanduser() / "hub"


def find_snapshot(cache: Path, model_id: str, revision: str) -> Path | None:
    """The snapshot of a branch, tag or whole commit hash of a model, if the cache has it."""
    model = cache / f"models--{model_id.replace('/', '--')}"
    try:
        commit = (model / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    snapshot = model / "snapshots" / commit
    # A name of several parts, or of none, would lead elsewhere; so would the parent's.
    return snapshot if snapshot.name == commit != ".." and snapshot.is_dir() else None
