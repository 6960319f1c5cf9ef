"""A tracker, an early stop and a learning-rate finder, as plugins, in real runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from caramba_plugins_testing.hooks import play_run

from tests.plugins.made import early_stop
from tests.plugins.site import Site
from tests.prepared import Ran

MADE = Path(__file__).with_name("made")

MANIFEST = """
version: 1
name: tiny
model:
  type: transformer
  tied_embeddings: true
  embedder: {type: token, vocab_size: 64, d_model: 16}
  topology:
    type: stacked
    layers:
      - {type: residual, layers: [{type: rms_norm}, {type: ATTENTION, n_heads: 2, OPTIONS}]}
      - {type: rms_norm}
groups:
  - name: main
    data: {train: tokens.npy}
    runs:
      - id: first
        mode: train
        steps: 12
        train: {strategy: pretrain, device: cpu, lr: 1.0e-2, batch_size: 2, context: 16}
""".replace("ATTENTION", "gqa").replace("OPTIONS", "n_kv_heads: 1, head_dim: 8")


@pytest.fixture
def made(site: Site) -> Site:
    np.save(site.folder / "tokens.npy", (np.arange(3000) % 50).astype("uint16"))
    (site.folder / "tiny.yml").write_text(MANIFEST)
    return site


def run(site: Site, *arguments: str) -> Ran:
    ran = site.caramba("run", "tiny.yml", *arguments)
    assert ran.code == 0, ran.err
    return ran


def steps_of(site: Site) -> list[dict[str, float]]:
    lines = (site.folder / "runs" / "tiny" / "main" / "first" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def install(site: Site, name: str, text: str, **components: dict[str, str]) -> None:
    site.add(
        f"caramba-plugin-{name}",
        entries={"caramba": {name: f"made_{name}"}, **components},
        modules={f"made_{name}": text},
    )


def test_tracker(made: Site) -> None:
    assert made.caramba("plugins", "new", "numbers", "--kind", "tracker").code == 0
    written = made.folder / "caramba-plugin-numbers" / "src" / "caramba_plugin_numbers" / "plugin.py"
    install(made, "numbers", written.read_text())
    run(made)
    with (made.folder / "runs" / "tiny" / "main" / "first" / "numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [float(row["loss"]) for row in rows] == [step["loss"] for step in steps_of(made)]


def test_early_stop(made: Site) -> None:
    install(made, "early", (MADE / "early_stop.py").read_text())
    run(made, "--set", "groups.0.runs.0.train.lr=1e-12", "--set", "groups.0.runs.0.steps=300")
    losses = [step["loss"] for step in steps_of(made)]
    assert len(losses) < 300
    stopped = next(
        number
        for number in range(1, len(losses) + 1)
        if number - (1 + losses[:number].index(min(losses[:number]))) >= early_stop.PATIENCE
    )
    assert len(losses) in (stopped, stopped + 1)  # numbers may come one step late from the device


def test_early_stop_in_a_played_run(tmp_path: Path) -> None:
    context = play_run(early_stop, tmp_path, losses=(3.0, 2.0, 2.0, 2.5, 2.1, 1.0))
    assert context.stop_reason == "the loss has not fallen below 2.0000 for 3 steps"
    assert play_run(early_stop, tmp_path / "other", losses=(3.0, 2.0, 1.0)).stop_reason is None


def test_learning_rate_finder(made: Site) -> None:
    install(made, "lr", (MADE / "lr_finder.py").read_text(), **{"caramba.schedule": {"lr_sweep": "made_lr:Sweep"}})
    run(
        made,
        *("--set", "groups.0.runs.0.train.lr=1.0", "--set", "groups.0.runs.0.steps=60"),
        *("--set", "groups.0.runs.0.train.schedule={type: lr_sweep, decades: 5}"),
    )
    taken = steps_of(made)
    assert taken[0]["lr"] == pytest.approx(1e-5)
    assert taken[1]["lr"] / taken[0]["lr"] == pytest.approx(10 ** (5 / 59))
    found = json.loads((made.folder / "runs" / "tiny" / "main" / "first" / "lr_finder.json").read_text())
    assert 1e-4 < found["suggested_lr"] < 1.0
    assert found["steps"] == len(taken)


def test_a_tracker_that_fails_does_not_end_the_run(made: Site) -> None:
    fails = (
        "from caramba_core.hookspecs import hookimpl\n@hookimpl\ndef step_finished(step): raise OSError('no network')\n"
    )
    install(made, "fails", fails)
    ran = run(made)
    assert len(steps_of(made)) == 12
    assert ran.said.count("plugin caramba-plugin-fails 1.0 failed in the hook step_finished") == 1
    traced = made.caramba("run", "tiny.yml", "--output", "other", environment={"CARAMBA_PLUGINS_TRACE": "1"})
    assert "caramba: run_started(" in traced.err
    assert "caramba: step_finished <- caramba-plugin-fails:fails in" in traced.err


def test_a_plugin_that_breaks_early_ends_the_run_and_can_be_left_out(made: Site) -> None:
    install(made, "breaks", "from caramba_core.hookspecs import hookimpl\n@hookimpl\ndef run_started(): 1 / 0\n")
    ran = made.caramba("run", "tiny.yml")
    assert ran.code == 2
    assert "plugin caramba-plugin-breaks 1.0 failed in the hook run_started: ZeroDivisionError" in ran.said
    assert made.caramba("run", "tiny.yml", "--no-plugin", "caramba-plugin-breaks").code == 0


def test_a_run_that_does_not_need_a_broken_plugin_goes_on(made: Site) -> None:
    made.add("caramba-plugin-bad", entries={"caramba": {"bad": "bad"}, "caramba.attention": {"bad": "bad:X"}})
    ran = run(made)
    assert "warning: plugin caramba-plugin-bad takes no part" in ran.said
    (made.folder / "tiny.yml").write_text(MANIFEST.replace("type: gqa", "type: bad"))
    ran = made.caramba("run", "tiny.yml")
    assert ran.code == 2
    assert "tiny.yml:11:60" in ran.said
    assert "its module bad is not there" in ran.said
    assert "pip install --force-reinstall caramba-plugin-bad" in ran.said
