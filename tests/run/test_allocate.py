"""Mode allocate, through the command: sizes by layer within a budget, in a manifest that can be run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from caramba_core.cli import main

from .workspace import make_workspace

BUDGET = "{id: allocate, mode: allocate, seed: 3, start: {tokens: 512, max_context: 32, cache_budget: 0.6x}}"


def caramba(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    manifest = make_workspace(tmp_path)
    text = manifest.read_text()
    manifest.write_text(text.replace("- {id: convert,", f"- {BUDGET}\n      - {{id: convert, from: null,", 1))
    return manifest


@pytest.mark.parametrize("latent", ["separate", "joint"])
def test_a_budget_is_divided_and_the_result_can_be_run(
    manifest: Path, capsys: pytest.CaptureFixture[str], latent: str
) -> None:
    if latent == "joint":
        text = manifest.read_text().replace('sem_dim: "${sem}"', "sem_dim: 0, latent: joint, geo_layout: shared")
        mixture = "{type: mixture, parts: [{weight: 2, data: train.npy}, {weight: 1, data: heldout.npy}]}"
        manifest.write_text(text.replace("{train: train.npy,", f"{{train: {mixture},"))
    assert caramba("run", manifest, "--run", "allocate", "--output", manifest.parent / "runs") == 0, capsys.readouterr()
    folder = manifest.parent / "runs" / "small" / "half" / "allocate"
    found = json.loads((folder / "allocation.json").read_text())
    assert found["cached_values"] == int(0.6 * 3 * 32)
    used = sum(sum(sizes.values()) for sizes in found["sizes"].values())
    assert found["cached_values"] - 8 < used <= found["cached_values"]  # a pair of both heads is the largest step

    allocated = YAML(typ="safe").load((folder / "allocated.yml").read_text())
    assert [run["id"] for run in allocated["groups"][0]["runs"]] == ["convert", "finetune"]
    blocks = next(layer for layer in allocated["model"]["topology"]["layers"] if layer.get("repeat") == 3)
    sizes = list(found["sizes"].values())
    assert blocks["each"] == {f"attention.{field}": [each[field] for each in sizes] for field in sizes[0]}

    again = manifest.parent / "again"
    assert caramba("run", folder / "allocated.yml", "--run", "convert", "--output", again) == 0, capsys.readouterr()
    summary = json.loads((again / "small" / "half" / "convert" / "summary.json").read_text())
    assert summary["cache_bytes_per_token"]["student"] == used * 4


def test_a_conversion_does_not_take_a_budget(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.write_text(manifest.read_text().replace("mode: allocate", "mode: convert"))
    assert caramba("run", manifest, "--run", "allocate", "--output", manifest.parent / "runs") == 2
    assert "start.cache_budget: the budget is divided by mode allocate" in " ".join(capsys.readouterr().err.split())
