"""A run that keeps its teacher's log-probabilities: of each window once, as large as planned, and bit for bit again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from caramba_core.cli import main

from .workspace import make_workspace, run


def workspace(folder: Path) -> Path:
    folder.mkdir()
    manifest = make_workspace(folder)
    np.save(folder / "train.npy", np.load(folder / "train.npy")[: 8 * 32 + 1])  # eight windows: epochs of four steps
    strategy = "{type: upcycle.global, keep_logits: {top: 7}}"
    text = manifest.read_text().replace("strategy: upcycle.global", f"strategy: {strategy}")
    manifest.write_text(text.replace("windows: 4", "windows: 1").replace("tokens: 512", "tokens: 128"))
    return manifest


def test_a_run_of_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, parts = workspace(tmp_path / "whole"), workspace(tmp_path / "parts")
    assert run(whole) == 0
    folder = whole.parent / "runs" / "small" / "half" / "finetune"
    size = 20 + 32 * (7 * 4 + 4)
    assert (folder / "teacher_logits" / "records.bin").stat().st_size == 8 * size
    plan = json.loads((folder / "plan.json").read_text())["runs"][1]
    assert plan["files"] == plan["tokens"] * (7 * 4 + 4)

    other = parts.parent / "runs" / "small" / "half" / "finetune"
    assert run(parts, "--run", "convert") == 0
    while not (other / "checkpoints" / "step_000002").exists():
        assert run(parts, "--run", "finetune", "--resume", "--minutes", "1e-9") == 0
    assert run(parts, "--resume") == 0
    for name in ("model", "optimizer"):
        one, two = (load_file(each / "checkpoints" / "step_000006" / f"{name}.safetensors") for each in (folder, other))
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    assert (other / "teacher_logits" / "records.bin").stat().st_size == 8 * size

    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["compile", str(whole), "--print-plan"])
    assert "finetune keeps up to 12 KiB in files beside its checkpoints" in " ".join(capsys.readouterr().out.split())
