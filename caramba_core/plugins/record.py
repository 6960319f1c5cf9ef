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

from caramba_core.plugins.metadata import ComponentEntry, PluginProblem
from caramba_core.user_cache import user_cache

__all__ = ["forget", "last_failures", "remember"]


def _file() -> Path:
    """Failures of this Python environment; the file's name is a hash of the environment's place."""
    return user_cache() / f"broken-plugins-{zlib.crc32(sys.prefix.encode()):08x}.json"


def _key(entry: ComponentEntry) -> str:
    return f"{entry.distribution}=={entry.version} {entry.kind}:{entry.name} = {entry.value}"


def last_failures() -> dict[str, PluginProblem]:
    """What was wrong at the last load by entry, where the last load failed."""
    try:
        read = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # absent, damaged, or a user without a home
        return {}
    found = read.items() if isinstance(read, dict) else ()
    return {key: PluginProblem(*pair) for key, pair in found if isinstance(pair, list) and len(pair) == 2}


def failure(entry: ComponentEntry, failures: dict[str, PluginProblem]) -> PluginProblem | None:
    """What ``failures`` say of an entry."""
    return failures.get(_key(entry))


def remember(entry: ComponentEntry, problem: PluginProblem) -> None:
    """Note that an entry failed to load."""
    failures = last_failures()
    if failures.get(_key(entry)) != problem:
        _write({**failures, _key(entry): problem})


def forget(entry: ComponentEntry) -> None:
    """Note that an entry loads."""
    failures = last_failures()
    if failures.pop(_key(entry), None) is not None:
        _write(failures)


def _write(failures: dict[str, PluginProblem]) -> None:
    import tempfile  # only failures need it

    try:
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump({key: [one.message, one.hint] for key, one in failures.items()}, opened, indent=1)
        Path(temporary).replace(file)
    except (OSError, RuntimeError):  # a read-only home loses the convenience, nothing else
        return
