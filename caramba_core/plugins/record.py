"""What broke when it was last loaded: remembered between processes, so that a listing can say so unimported.

One small file an environment, in the user's cache folder.  It is a convenience: where it cannot be written, listings
only know what this process has seen.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from pathlib import Path

import attrs

from caramba_core.errors import InputError, PluginError
from caramba_core.places import regular
from caramba_core.plugins.metadata import ComponentEntry

__all__ = ["last_failures", "note", "user_cache"]


def last_failures() -> dict[ComponentEntry, PluginError]:
    """The entries whose last load failed, and why."""
    try:
        rows = json.loads(regular(_file()).read_text(encoding="utf-8"))
        return {ComponentEntry(*entry): PluginError(message, hint=hint) for entry, message, hint in rows}
    except (OSError, ValueError, TypeError, RuntimeError, InputError):  # absent, damaged, or a user without a home
        return {}


def note(entry: ComponentEntry, error: PluginError | None) -> None:
    """Remember how the last load of an entry ended: with an error, or well."""
    failures = last_failures()
    if failures.pop(entry, None) is None and error is None:
        return
    if error is not None:
        hints = filter(None, (error.hint, f"caramba plugins check {entry.distribution} tries it again"))
        failures[entry] = PluginError(error.message, hint="; ".join(hints))
    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        rows = [(attrs.astuple(failed), why.message, why.hint) for failed, why in failures.items()]
        temporary.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        temporary.replace(file)
    except (OSError, RuntimeError):  # a read-only home loses the convenience, nothing else
        return


def _file() -> Path:
    """The file of this Python environment; its name is a hash of the environment's place."""
    return user_cache() / f"broken-plugins-{zlib.crc32(sys.prefix.encode()):08x}.json"


def user_cache() -> Path:
    """caramba's part of the user's cache folder, all of which may be deleted; :class:`RuntimeError` without a home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "caramba"
