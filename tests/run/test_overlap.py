"""Held-out tokens that a run also learns from are found, told, and marked in its results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from caramba_core.cli import main
from caramba_core.datasets import Tokens
from caramba_core.run.overlap import share_found

from .workspace import make_workspace


def tokens(ids: list[int] | np.ndarray, part: tuple[Path, float, float] | None = None) -> Tokens:
    return Tokens(ids=np.asarray(ids, np.uint16), tokenizer=None, origin="ids", parts=() if part is None else (part,))


def test_parts_of_one_file(tmp_path: Path) -> None:
    file, link = tmp_path / "a", tmp_path / "b"
    file.write_text("")
    link.symlink_to(file)
    ids = np.arange(100)
    for one, two, expected in (
        ((0.0, 1.0), (0.0, 1.0), 1.0),
        ((0.0, 0.9), (0.9, 1.0), 0.0),
        ((0.0, 0.9), (0.8, 1.0), 0.5),
        ((0.5, 1.0), (0.0, 0.25), 0.0),
    ):
        assert share_found(tokens(ids, (file, *one)), tokens(ids, (link, *two))) == pytest.approx(expected)


def test_contents(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(0, 50_000, 3_000_000, np.uint16)
    other = rng.integers(0, 50_000, 20_000, np.uint16)
    assert share_found(tokens(train), tokens(train)) == 1.0
    assert share_found(tokens(train), tokens(train[2_345_678:2_400_000])) == 1.0
    assert share_found(tokens(train), tokens(other)) == 0.0
    half = np.concatenate([train[1_040_000:1_060_000], other])
    assert 0.4 <= share_found(tokens(train), tokens(half)) <= 0.6
    assert share_found(tokens(np.zeros(3_000_000)), tokens(np.zeros(50))) == 1.0
    assert share_found(tokens(np.zeros(3_000_000)), tokens(other)) == 0.0
    assert share_found(tokens([1, 2]), tokens(other)) == 0.0


@pytest.mark.parametrize("same", ["file", "content", "nothing"])
def test_a_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, same: str
) -> None:
    manifest = make_workspace(tmp_path)
    if same == "file":
        manifest.write_text(manifest.read_text().replace("heldout: heldout.npy", "heldout: ./train.npy"))
    if same == "content":
        shutil.copyfile(tmp_path / "train.npy", tmp_path / "heldout.npy")
    with pytest.raises(SystemExit) as ended:
        main(["run", str(manifest), "--output", str(tmp_path / "runs")])
    assert not ended.value.code
    table = capsys.readouterr().out
    summary = json.loads((tmp_path / "runs" / "small" / "half" / "finetune" / "summary.json").read_text())
    if same == "nothing":
        assert "heldout_in_train" not in summary
        assert "training tokens" not in table + caplog.text
    else:
        assert summary["heldout_in_train"] == 1.0
        assert "100% of the held-out tokens are training tokens too" in caplog.text
        assert "held-out tokens are training tokens too" in table
