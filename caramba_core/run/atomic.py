"""Publishing files and folders at once: temporary name, fsync, rename."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

from caramba_core.places import regular

__all__ = ["publish_file", "publish_folder", "write_json", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``; readers see the old content or the new, never a part."""
    with publish_file(path) as file:
        file.write(text.encode())


@contextmanager
def publish_file(path: Path) -> Iterator[BufferedRandom]:
    """A file to write, which replaces ``path`` only once the block ends well."""
    temporary = _beside(regular(path))
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _name(error, temporary, path)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Replace ``path`` by ``data`` as JSON; refuses values that JSON has no word for (NaN)."""
    write_text(path, json.dumps(data, indent=2, allow_nan=False) + "\n")


@contextmanager
def publish_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which appears under ``path`` only once the block ends well.

    ``replace`` puts it in the place of one that is there.
    """
    assert replace or not path.exists(), f"{path} is already published"
    replaced = path.with_name(f".{path.name}.old")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        _sync_folder(temporary)
        if replace and path.exists():
            path.rename(replaced)
        temporary.rename(path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name(error, temporary, path)
        raise
    _sync_folder(path.parent)
    if replace:
        shutil.rmtree(replaced, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A hidden name beside ``path`` that no other process uses; what is made there has the user's usual permissions."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


def _name(error: BaseException, temporary: Path, path: Path) -> None:
    """Let a failed write speak of what was to be published: the system names a file that is gone, or none."""
    if not isinstance(error, OSError) or error.errno is None:
        return
    if error.filename is None or str(error.filename).startswith(str(temporary)):
        error.filename = str(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
