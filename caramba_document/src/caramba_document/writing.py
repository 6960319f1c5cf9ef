"""Plain data as the text of a manifest that a person likes to read, and that reads as the same data."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import attrs

from caramba_document.problem import Path
from caramba_document.scalars import BadScalarError, resolve_scalar

__all__ = ["dump"]

_BARE: Final = re.compile(r"[A-Za-z_./~$][A-Za-z0-9_./~$ @+=*-]*(?<! )")
_WIDTH: Final = 118
_ESCAPED: Final = {code: f"\\u{code:04X}" for code in (0x85, 0x2028, 0x2029)}
"""Characters that must not stand in YAML as they are."""


def dump(document: Mapping[str, Any], teacher_keys: Mapping[Path, str] | None = None) -> str:
    """The YAML of a resolved manifest; mappings and lists that fit stand on one line.

    ``teacher_keys`` are the keys of the teacher's configuration by the path of the value that was taken from there; a
    comment behind the value's line names them.
    """
    return "\n".join(_Writer(teacher_keys or {}).inside(document, 0, ())) + "\n"


@attrs.frozen
class _Writer:
    keys: Mapping[Path, str]

    def lines(self, lead: str, value: Any, indent: int, path: Path) -> list[str]:
        """A value behind ``key:`` or ``-``, on as many lines as it takes."""
        line = f"{' ' * indent}{lead} {_flow(value)}"
        if not _is_long(value, line):
            return [line + self.comment(path)]
        inner = self.inside(value, indent + 2, path)
        if lead == "-":
            return [f"{' ' * indent}- {inner[0].lstrip()}", *inner[1:]]
        return [f"{' ' * indent}{lead}", *inner]

    def inside(self, value: Any, indent: int, path: Path) -> list[str]:
        """The lines of a collection's entries."""
        if isinstance(value, Mapping):
            return [line for k, v in value.items() for line in self.lines(f"{_text(k)}:", v, indent, (*path, k))]
        return [line for index, v in enumerate(value) for line in self.lines("-", v, indent, (*path, index))]

    def comment(self, path: Path) -> str:
        """The keys behind the values of one line."""
        keys = dict.fromkeys(key for place, key in self.keys.items() if place[: len(path)] == path)
        return f"  # teacher config: {', '.join(keys)}" if keys else ""


def _is_long(value: Any, line: str) -> bool:
    """Whether a collection is better spread over lines: it is wide, or holds collections of collections."""
    return _depth(value) > 0 and bool(value) and (len(line) > _WIDTH or _depth(value) > 2)


def _depth(value: Any) -> int:
    if isinstance(value, Mapping | list | tuple):
        return 1 + max(map(_depth, value.values() if isinstance(value, Mapping) else value), default=0)
    return 0


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(key)}: {_flow(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
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
    return text if bare else json.dumps(text, ensure_ascii=False).translate(_ESCAPED)
