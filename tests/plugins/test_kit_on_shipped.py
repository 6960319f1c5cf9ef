"""The kit against every attention that is shipped."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.plugins.attentions import CASES


@pytest.mark.components(*CASES)
def test_attention(component_check: Callable[[], None]) -> None:
    component_check()
