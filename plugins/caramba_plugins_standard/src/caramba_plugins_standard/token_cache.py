"""Token ids of texts that were encoded before: kept in the user's cache folder, where they may be deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from caramba_core.plugins.record import user_cache
from caramba_core.run.atomic import publish_file
from caramba_plugins_standard.array_writing import write_array

if TYPE_CHECKING:
    from caramba_plugins_standard.encoding import Ids

__all__ = ["cached_ids"]

_MOST_BYTES: Final = 8 << 30
"""Beyond this the arrays that were not used for longest go."""


def cached_ids(facts: tuple[object, ...] | None, encode: Callable[[], Iterator[Ids]], dtype: str) -> Ids:
    """The ids that ``encode`` gives in parts, memory-mapped; ``facts`` are all that they depend on.

    Without facts, and where the folder cannot be used, they are encoded in memory.
    """
    if facts is None:
        return _in_memory(encode(), dtype)
    try:
        path = user_cache() / "tokens" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.npy"
        found = _read(path, dtype)
        if found is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with publish_file(path) as file:
                write_array(file, encode(), dtype)
            _forget(path)
            found = _read(path, dtype)
        path.touch()
    except (OSError, RuntimeError):  # no home, no right to write there, no room
        found = None
    return _in_memory(encode(), dtype) if found is None else found


def _read(path: Path, dtype: str) -> Ids | None:
    try:
        ids: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return ids if ids.ndim == 1 and ids.dtype == dtype and len(ids) else None


def _in_memory(parts: Iterator[Ids], dtype: str) -> Ids:
    found: Ids = np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
    return found


def _forget(kept: Path) -> None:
    """Remove the arrays that were not used for longest where all take too much room."""
    used = sorted(kept.parent.glob("*.npy"), key=lambda path: path.stat().st_mtime)
    size = sum(path.stat().st_size for path in used)
    for path in used:
        if size > _MOST_BYTES and path != kept:
            size -= path.stat().st_size
            path.unlink(missing_ok=True)
