"""Where caramba remembers things between processes: conveniences, each of which may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path:
    """caramba's part of the user's cache folder; :class:`RuntimeError` for a user without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "caramba"
