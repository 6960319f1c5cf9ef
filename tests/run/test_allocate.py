"""Mode allocate, through the command: sizes by layer within a budget, in a manifest that can be run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from caramba_plugins_upcycle.allocation.writing import written
from ruamel.yaml import YAML

from caramba_core.cli import main
from caramba_core.lowered import lower_all
from caramba_core.manifest.load import load_manifest
from caramba_core.plan import plan_model

from .workspace import make_workspace

START = "seed: 3, start: {tokens: 512, max_context: 32}"
BUDGET = f"{{id: allocate, mode: allocate, cache_budget: 0.6x, {START}}}"
HEADS = "n_heads: 4, n_kv_heads: 2, head_dim: 8, rope: {theta: 100.0}, o_bias: true"
OTHERS = f"""{{id: allocate, mode: allocate, cache_budget: 64 B, keep: true, {START},
             caches: [full, {{type: int8, block: 8}}, {{type: int4, block: 8}}],
             choices: [{{type: mla, {HEADS}, rank: 12, rope_dim: 4}},
                       {{type: sliding_window, {HEADS}, window: 12, sinks: 2}}]}}"""


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
    budget = found["budget_bytes_per_token"]
    assert budget == pytest.approx(0.6 * 3 * 32 * 2, abs=0.1)
    used = found["bytes_per_token"]
    assert budget - 16 < used <= budget  # a pair of both heads is the largest step
    assert used == sum(layer["bytes_per_token"] for layer in found["layers"].values())

    allocated = YAML(typ="safe").load((folder / "allocated.yml").read_text())
    assert [run["id"] for run in allocated["groups"][0]["runs"]] == ["convert", "finetune"]
    blocks = next(layer for layer in allocated["model"]["topology"]["layers"] if layer.get("repeat") == 3)
    chosen = [layer["attention"] for layer in found["layers"].values()]
    varying = [field for field in ("sem_dim", "geo_dim", "v_dim") if len({one.get(field) for one in chosen}) > 1]
    assert blocks.get("each", {}) == {f"attention.{field}": [one[field] for one in chosen] for field in varying}
    assert "variants" not in blocks

    again = manifest.parent / "again"
    assert caramba("run", folder / "allocated.yml", "--run", "convert", "--output", again) == 0, capsys.readouterr()
    summary = json.loads((again / "small" / "half" / "convert" / "summary.json").read_text())
    assert summary["cache_bytes_per_token"]["student"] == used * 2  # in float32


def test_the_manifest_runs_from_anywhere(
    manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patterns, lists and parts lead to where they led; a word that is also a folder's name stays a word."""
    folder, elsewhere = manifest.parent, manifest.parent / "elsewhere"
    for made in ("shards", "tokens", "gqa", "elsewhere"):
        (folder / made).mkdir()
    (folder / "train.npy").rename(folder / "shards" / "one.npy")
    parts = "[{weight: 2, data: {type: tokens, path: 'shards/*.npy'}}, {weight: 1, data: 'shards/o*.npy'}]"
    text = manifest.read_text().replace("{train: train.npy,", f"{{train: {{type: mixture, parts: {parts}}},")
    manifest.write_text(
        text.replace("heldout: heldout.npy", "heldout: {type: tokens, path: [heldout.npy, shards/one.npy]}")
    )
    monkeypatch.chdir(folder)
    assert caramba("run", manifest.name, "--run", "allocate", "--output", "runs") == 0, capsys.readouterr()
    found = (folder / "runs" / "small" / "half" / "allocate" / "allocated.yml").rename(elsewhere / "allocated.yml")
    monkeypatch.chdir(elsewhere)
    assert caramba("run", found.name, "--run", "convert", "--output", elsewhere) == 0, capsys.readouterr()
    group = YAML(typ="safe").load(found.read_text())["groups"][0]
    assert group["data"]["train"]["parts"][0]["data"] == {"type": "tokens", "path": str(folder / "shards/*.npy")}
    assert group["teacher"]["source"] == str(folder / "teacher")


def test_layers_choose_among_attentions_and_caches(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is chosen fills the budget, as a plan in bfloat16 counts it, and is what the manifest builds."""
    manifest.write_text(manifest.read_text().replace(BUDGET, OTHERS))
    assert caramba("run", manifest, "--run", "allocate", "--output", manifest.parent / "runs") == 0, capsys.readouterr()
    folder = manifest.parent / "runs" / "small" / "half" / "allocate"
    found = json.loads((folder / "allocation.json").read_text())
    assert 60 <= found["bytes_per_token"] <= found["budget_bytes_per_token"] == 64
    for layer in found["layers"].values():
        own, mla, window, kept = layer["measured"]
        assert [one["attention"]["type"] for one in layer["measured"]] == ["dba", "mla", "sliding_window", "gqa"]
        assert own["curves"]
        assert not mla["curves"]
        assert kept["divergence"] == 0.0 < min(own["divergence"], mla["divergence"], window["divergence"])
        for one in layer["measured"]:
            (_, full), (_, eight), (_, four) = one["rounding"]
            assert full == 0.0 < eight < four
    (graph,) = lower_all(load_manifest(str(folder / "allocated.yml")))[1].values()
    plan = plan_model(graph, context=32, dtype="bfloat16")
    assert plan.total.context_bytes == found["bytes_per_token"] * 32
    chosen = [written(node.config) for node in graph.attentions().values()]
    assert [layer["attention"] for layer in found["layers"].values()] == chosen
    again = manifest.parent / "again"
    assert caramba("run", folder / "allocated.yml", "--run", "convert", "--output", again) == 0, capsys.readouterr()


def test_there_must_be_something_to_choose_from(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = manifest.read_text().replace("{type: dba,", "{type: mla, rank: 12, rope_dim: 4,")
    manifest.write_text(re.sub(r'sem_dim: .*?v_dim: "\$\{values\}",', "", text, flags=re.S))
    assert caramba("run", manifest, "--run", "allocate", "--output", manifest.parent / "runs") == 2
    assert "MultiHeadLatentAttention does not say what its sizes lose" in " ".join(capsys.readouterr().err.split())


def test_too_small_a_budget_says_what_is_the_least(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.write_text(manifest.read_text().replace("0.6x", "1 B"))
    assert caramba("run", manifest, "--run", "allocate", "--output", manifest.parent / "runs") == 2
    assert "cache_budget: 1 B is too small: " in " ".join(capsys.readouterr().err.split())
