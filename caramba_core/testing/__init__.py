"""The test kit: what every component must hold to, ready to run against yours.

The kit is a pytest plugin that comes with ``caramba-core``.  A test file of a plugin needs no more than this::

    import pytest
    from caramba_core.testing import Case
    from my_plugin.attention import MyAttention

    @pytest.mark.components(
        Case(config=MyAttention(n_heads=2), width=32, relative=True, bad=({"n_heads": 0},)),
        Case(config=MyAttention(n_heads=2, window=3), width=32, name="windowed"),
    )
    def test_component(component_check):
        component_check()

Each case is run through every check that applies to its kind; ``pytest -k causality`` runs one of them, and
``docs/plugins.md`` lists all.  This module is light; the checks import torch.
"""

from caramba_core.testing.case import Case, CheckFailed
from caramba_core.testing.components import TinyAttention, TinyChain, TinyEmbedder, TinyHead, TinyLinear

__all__ = ["Case", "CheckFailed", "TinyAttention", "TinyChain", "TinyEmbedder", "TinyHead", "TinyLinear"]
