"""Names of files and folders as users write them, and what stands there."""

from __future__ import annotations

import stat
from glob import glob
from os import PathLike
from pathlib import Path

from caramba_core.errors import InputError

__all__ = ["expanded", "named", "regular"]


def expanded(name: str | PathLike[str]) -> Path:
    """A name with ``~`` and ``~USER`` as folders; :class:`InputError` for a user who has none."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        user = Path(name).parts[0]
        raise InputError(f"{name}: there is no home of {user}", hint=f"./{name} is a folder of that name") from error


def regular(path: Path) -> Path:
    """The same path; :class:`InputError` where something stands that is no file.

    Opening a named pipe would wait for somebody to write, and a device may never end.
    """
    try:
        mode = path.stat().st_mode
    except OSError:  # opening it says why not
        return path
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a file", hint="move what stands there away")
    return path


def named(path: Path) -> list[Path]:
    """The file or folder of a name, or those that it is a pattern of (``shards/*.npy``), sorted."""
    return [path] if path.exists() else sorted(map(Path, glob(str(path))))  # noqa: PTH207 - absolute patterns, too
