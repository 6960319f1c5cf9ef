"""Distillation of logits: what trains gets its gradient, whatever it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from caramba_plugins_testing.strategies import check_strategy
from caramba_plugins_upcycle.strategies import Global


@pytest.mark.parametrize("trains", ["head", "attention", "*"])
@pytest.mark.parametrize("cross_entropy", [0.0, 0.5])
def test_whatever_trains(trains: str, cross_entropy: float, tmp_path: Path) -> None:
    """The head alone, which is not tied, too: then nothing runs backward through the layers."""
    strategy = Global(cross_entropy=cross_entropy, logit_rows=5)
    check_strategy(strategy, tmp_path, trains=(trains,))
