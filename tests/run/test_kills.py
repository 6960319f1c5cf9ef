"""Killed at any moment, a run that is resumed ends in the same weights, the same metrics, and nothing left behind.

``CARAMBA_KILLS=200`` tries as many moments of each kind of run instead of a few.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.distributions import ROOT
from tests.plugins.test_hooks_in_runs import MANIFEST
from tests.prepared import start

from .workspace import make_workspace

POINTS = int(os.environ.get("CARAMBA_KILLS", "9"))
EVALUATED = "      - {id: convert, mode: convert, seed: 3, start: {tokens: 512, max_context: 32}}\n"
SAFE = "evaluate_every: 3, checkpoint_every: 2, accumulate: 2, keep: {last: 1, every: 8, best: perplexity}, "
SAFE += "on_nonfinite: skip 2, skip_spikes: 1.05"


def pretrain(folder: Path) -> Path:
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 60, 5000).astype(np.uint16))
    (folder / "m.yml").write_text(MANIFEST)
    return folder / "m.yml"


def mixture(folder: Path) -> Path:
    """Two parts with documents, one of two files, several epochs of both; checkpoints that stay, steps left out."""
    for name, size in (("a", 150), ("b", 90), ("c", 90)):
        np.save(folder / f"{name}.npy", np.random.default_rng(ord(name)).integers(0, 60, size).astype(np.uint16))
        (folder / f"{name}.npy.json").write_text('{"end_of_text": 0}')
    parts = (
        "[{weight: 2, data: {type: tokens, path: a.npy, documents: true}},"
        " {weight: 1, data: {type: tokens, path: '[bc].npy', documents: true}}]"
    )
    mixed = f"{{train: {{type: mixture, parts: {parts}}}, heldout: a.npy}}"
    assert "{train: tokens.npy, heldout: tokens.npy}" in MANIFEST
    (folder / "m.yml").write_text(
        MANIFEST.replace("{train: tokens.npy, heldout: tokens.npy}", mixed)
        .replace("steps: 6", "steps: 20")
        .replace("evaluate_every: 3", SAFE)
    )
    return folder / "m.yml"


def evaluated(folder: Path) -> Path:
    """An evaluation stands between a conversion and the training that continues it."""
    manifest = make_workspace(folder)
    text = manifest.read_text()
    assert EVALUATED in text
    manifest.write_text(text.replace(EVALUATED, f"{EVALUATED}      - {{id: look, mode: eval}}\n"))
    return manifest


@pytest.mark.slow
@pytest.mark.parametrize("make", [pretrain, mixture, make_workspace, evaluated])
def test_kills(tmp_path: Path, make: object) -> None:
    manifest = make(tmp_path)  # type: ignore[operator]
    points = start(
        "tests.run.kill_points",
        str(manifest),
        str(POINTS),
        cwd=ROOT,
        environment={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    done = points.ended()
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["events"] > 20
    assert found["wrong"] == {}, done.err
