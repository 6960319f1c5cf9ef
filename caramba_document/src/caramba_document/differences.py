"""Where two documents differ, whichever way they are spelled."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import attrs

__all__ = ["Change", "differences", "listed", "normal"]


@attrs.frozen
class Change:
    """One difference between two documents, by its dotted path; ``None`` is what is not there."""

    path: str
    before: Any
    after: Any

    def lies_in(self, place: str) -> bool:
        """Whether it is of what stands at this path, or of a part of it."""
        return self.path == place or self.path.startswith(f"{place}.")

    def __str__(self) -> str:
        before, after = (_short(value) for value in (self.before, self.after))
        return f"{self.path}: {before} -> {after}"


def differences(before: Any, after: Any, path: str = "") -> Iterator[Change]:
    """Where two documents differ, in the order of their keys."""
    if isinstance(before, dict) != isinstance(after, dict):  # what is in a mapping that is there in one of them alone
        before, after = {} if before is None else before, {} if after is None else after
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{path}.{index}")
    elif before != after:
        yield Change(path, before, after)


def listed(changes: Sequence[Change]) -> str:
    """The first of them, a line each."""
    shown = [str(each) for each in changes[:12]]
    return "\n    ".join(shown + ([f"and {len(changes) - 12} more"] if len(changes) > 12 else []))


def normal(value: Any, without: Collection[str] = (), prefix: str = "") -> Any:
    """One spelling for what a manifest may write in two: ``{type: cosine}`` and ``cosine``, ``1.0`` and ``1``.

    Keys ``without`` effect, dotted where they are nested, are left out.
    """
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if f"{prefix}{key}" not in without}
        if kept.keys() == {"type"}:
            return kept["type"]
        return {key: normal(item, without, f"{prefix}{key}.") for key, item in kept.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
