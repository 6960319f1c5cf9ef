"""The test kit: what every component must hold to, ready to run against yours.

The kit is a pytest plugin.  A test file of a plugin needs no more than this::

    import pytest
    from caramba_plugins_testing import Case
    from my_plugin.attention import MyAttention

    @pytest.mark.components(
        Case(config=MyAttention(n_heads=2), width=32, relative=True, bad=({"n_heads": 0},)),
        Case(config=MyAttention(n_heads=2, window=3), width=32, name="windowed"),
    )
    def test_component(component_check):
        component_check()

Each case is run through every check that applies to its kind; ``pytest -k causality`` runs one of them, and
``docs/plugins.md`` lists all.  The names below are imported on first use, and torch with the first check.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Case", "CheckFailed"]

if TYPE_CHECKING:
    from caramba_plugins_testing.case import Case, CheckFailed


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'caramba_plugins_testing' has no attribute {name!r}")
    from caramba_plugins_testing import case

    return getattr(case, name)
