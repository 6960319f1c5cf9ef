"""Words for messages about names."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["listed", "nearest"]

_SHOWN = 12


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The known name that a misspelt one most likely means; case does not count."""
    from difflib import get_close_matches  # a listing without mistakes does without it

    by_folded = {known.casefold(): known for known in names}
    found = get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def listed(names: Sequence[str]) -> str:
    """Names in one line, the first dozen spelled out."""
    shown = sorted(set(names))
    if len(shown) <= _SHOWN:
        return ", ".join(shown)
    return f"{', '.join(shown[:_SHOWN])} and {len(shown) - _SHOWN} more"
