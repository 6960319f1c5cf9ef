"""Fixtures of the plugin tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from caramba_core.plugins.registry import registry
from tests.plugins.site import Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Made-up distributions, for this process too."""
    made = Site(tmp_path)
    monkeypatch.syspath_prepend(str(made.folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(made.cache))
    monkeypatch.delenv("CARAMBA_DISABLE_PLUGINS", raising=False)
    registry.cache_clear()
    before = set(sys.modules)
    yield made
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(made.folder)):
            del sys.modules[name]
    registry.cache_clear()
