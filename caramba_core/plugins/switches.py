"""Switching plugins off: ``--no-plugin NAME`` and ``CARAMBA_DISABLE_PLUGINS=name,name``."""

from __future__ import annotations

import os
from collections.abc import Iterable

from caramba_core.plugins.metadata import CORE, normalized

__all__ = ["DISABLE_VARIABLE", "disabled", "switch_off"]

DISABLE_VARIABLE = "CARAMBA_DISABLE_PLUGINS"


def disabled() -> frozenset[str]:
    """Normalized names of the distributions that are switched off; the core cannot be."""
    named = os.environ.get(DISABLE_VARIABLE, "").split(",")
    return frozenset(normalized(name) for name in named if name.strip()) - {CORE}


def switch_off(names: Iterable[str]) -> None:
    """Switch distributions off, here and in every process that this one starts."""
    os.environ[DISABLE_VARIABLE] = ",".join(sorted(disabled().union(map(normalized, names))))
