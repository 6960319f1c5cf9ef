"""Killed at any moment, a run that is resumed ends in the same weights, the same metrics, and nothing left behind.

``CARAMBA_KILLS=200`` tries as many system calls of each kind of run instead of a few.
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


def pretrain(folder: Path) -> Path:
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 60, 5000).astype(np.uint16))
    (folder / "m.yml").write_text(MANIFEST)
    return folder / "m.yml"


def evaluated(folder: Path) -> Path:
    """An evaluation stands between a conversion and the training that continues it."""
    manifest = make_workspace(folder)
    text = manifest.read_text()
    assert EVALUATED in text
    manifest.write_text(text.replace(EVALUATED, f"{EVALUATED}      - {{id: look, mode: eval}}\n"))
    return manifest


@pytest.mark.slow
@pytest.mark.parametrize("make", [pretrain, make_workspace, evaluated])
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


@pytest.mark.slow
def test_random_moments() -> None:
    """Of a run over a mixture with documents, by one process and by two, which hold copies of the model or parts."""
    options = ("--moments", "10", "--pairs", "3", "--steps", "8")
    bench = start("bench.kills", *options, cwd=ROOT, environment={**os.environ, "OMP_NUM_THREADS": "1"})
    done = bench.ended()
    assert done.code == 0, done.said
    *_, found = map(json.loads, done.out.splitlines())
    assert (found["kills"], found["wrong"]) == (10, 0)
    assert found["by_kind"]["copies"]["killed"] + found["by_kind"]["parts"]["killed"] == 3
