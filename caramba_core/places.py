"""Names of files and folders as users write them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from caramba_core.errors import InputError

__all__ = ["expanded"]


def expanded(name: str | PathLike[str]) -> Path:
    """A name with ``~`` and ``~USER`` as folders; :class:`InputError` for a user who has none."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        user = Path(name).parts[0]
        raise InputError(f"{name}: there is no home of {user}", hint=f"./{name} is a folder of that name") from error
