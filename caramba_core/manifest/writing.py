"""Plain data as the text of a manifest that a person likes to read, and that reads as the same data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from caramba_core.manifest.scalars import BadScalarError, resolve_scalar

__all__ = ["dump"]

_BARE: Final = re.compile(r"[A-Za-z_./~$][A-Za-z0-9_./~$ @+=*-]*(?<! )")
_WIDTH: Final = 118


def dump(document: Mapping[str, Any]) -> str:
    """The YAML of a resolved manifest; mappings and lists that fit stand on one line."""
    lines: list[str] = []
    for key, value in document.items():
        lines.extend(_entry(_text(key), value, 0))
    return "\n".join(lines) + "\n"


def _entry(key: str, value: Any, indent: int) -> list[str]:
    """``key: value``, on as many lines as it takes."""
    pad = " " * indent
    line = f"{pad}{key}: {_flow(value)}"
    if not _is_long(value, line):
        return [line]
    if isinstance(value, Mapping):
        return [f"{pad}{key}:", *(line for k, v in value.items() for line in _entry(_text(k), v, indent + 2))]
    return [f"{pad}{key}:", *(line for item in value for line in _item(item, indent + 2))]


def _item(value: Any, indent: int) -> list[str]:
    """``- value``, on as many lines as it takes."""
    pad = " " * indent
    line = f"{pad}- {_flow(value)}"
    if not _is_long(value, line):
        return [line]
    if isinstance(value, Mapping):
        inner = [line for key, item in value.items() for line in _entry(_text(key), item, indent + 2)]
    else:
        inner = [line for item in value for line in _item(item, indent + 2)]
    return [f"{pad}- {inner[0].lstrip()}", *inner[1:]]


def _is_long(value: Any, line: str) -> bool:
    """Whether a collection is better spread over lines: it is wide, or holds collections of collections."""
    if not isinstance(value, Mapping | list | tuple) or not value:
        return False
    inner = list(value.values() if isinstance(value, Mapping) else value)
    nested = any(_depth(item) > 1 for item in inner)
    return len(line) > _WIDTH or nested


def _depth(value: Any) -> int:
    if isinstance(value, Mapping):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list | tuple):
        return 1 + max(map(_depth, value), default=0)
    return 0


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(key)}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_flow, value))}]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return str(value) if isinstance(value, int) else _text(value)


def _text(text: str) -> str:
    """A string, quoted only where it would read as something else."""
    try:
        bare = _BARE.fullmatch(text) is not None and resolve_scalar(text) == text and text != "<<"
    except BadScalarError:
        bare = False
    return text if bare else json.dumps(text, ensure_ascii=False)
