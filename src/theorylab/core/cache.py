"""The folder of what can be made again: generated data, and what was read from the sources of studies."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """``THEORYLAB_CACHE``, else ``theorylab`` in the user's cache folder."""
    base = os.environ.get("THEORYLAB_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "theorylab"


def recall(name: str, stamp: object) -> Any:
    """What `remember` kept under ``name`` with the same ``stamp``; None where there is nothing, or nothing that can be read."""
    try:
        with (cache_folder() / f"{name}.pickle").open("rb") as file:
            kept, value = pickle.load(file)
    except Exception:  # a damaged file may raise anything; it is written anew
        return None
    return value if kept == stamp else None


def remember(name: str, stamp: object, value: object) -> None:
    """Keep a value for later processes; where the folder cannot be written, nothing is kept."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        temporary = cache_folder() / f".{name}.{os.getpid()}"
        temporary.write_bytes(pickle.dumps((stamp, value)))
        temporary.replace(cache_folder() / f"{name}.pickle")
    except OSError:
        pass
