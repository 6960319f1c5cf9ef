"""Reading JSON that others wrote: bounded, without duplicate keys (light)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

from caramba_core.errors import InputError
from caramba_core.places import regular

__all__ = ["parse_object", "read_object"]

_LARGEST: Final = 64 << 20
"""Bytes; indices and configurations of the largest models stay below a tenth of it."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises :class:`InputError` where there is none."""
    try:
        if regular(path).stat().st_size > _LARGEST:
            raise InputError(f"{path} has {path.stat().st_size} bytes, too many for a description of a model")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_object(data, str(path))


def parse_object(data: bytes, origin: str) -> dict[str, Any]:
    """The JSON object in ``data``; ``origin`` names it in errors."""
    if data.startswith(b"version https://git-lfs"):
        raise InputError(f"{origin} is a git-LFS pointer, not the file itself", hint="git lfs pull fetches it")
    try:
        value = json.loads(data, object_pairs_hook=_without_duplicates)
    except _DuplicateError as error:
        raise InputError(f"{origin}: the key {error.args[0]!r} stands twice") from None
    except RecursionError:
        raise InputError(f"{origin} is nested too deeply") from None
    except ValueError as error:  # JSON and UTF-8 alike
        raise InputError(f"{origin} is not JSON: {error}", hint="fetch the file again") from None
    if not isinstance(value, dict):
        raise InputError(f"{origin} holds no JSON object")
    return value


class _DuplicateError(Exception):
    """A key that stands twice; not a ValueError, which JSON itself raises."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise _DuplicateError(next(key for key in times if times[key] > 1))
    return found
