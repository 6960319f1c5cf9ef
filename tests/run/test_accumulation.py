"""A step over several passes with unequal numbers of labels weighs labels, not passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from caramba_plugins_standard.marks import BEGINS, GIVEN
from caramba_plugins_standard.training.batch import batches_of

from bench.accumulation import losses_of_caramba, losses_of_plain_loop, write


def test_losses_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    """``python bench/accumulation.py`` does the same over 100 steps."""
    write(tmp_path, 6)
    ours = losses_of_caramba(tmp_path)
    theirs, counts = losses_of_plain_loop(tmp_path, 6)
    assert any(max(step) > 1.2 * min(step) for step in counts), "passes must differ for this to say anything"
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_parts_of_a_mean_add_up_to_it() -> None:
    words = torch.arange(24).view(3, 1, 8)
    words[0, 0, 2:] |= GIVEN
    words[1, 0, 3] |= BEGINS
    losses = [torch.tensor(2.0), torch.tensor(3.0), torch.tensor(4.0)]
    batches = batches_of(words, marked=True)
    counts = [int((batch.targets >= 0).sum()) for batch in batches]
    assert counts == [1, 6, 7]
    found = torch.stack([batch.mean(loss) for batch, loss in zip(batches, losses, strict=True)]).mean()
    assert float(found) == pytest.approx(9 / 14)
    for dtype in (torch.float64, torch.bfloat16):
        assert batches[0].mean(torch.tensor(1.0, dtype=dtype)).dtype is dtype
    [nothing] = batches_of(torch.full((1, 1, 4), GIVEN), marked=True)
    assert float(nothing.mean(torch.tensor(0.0))) == 0.0
