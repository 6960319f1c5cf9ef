"""A mode of a distribution that nobody here knows, written with documented names alone."""

from __future__ import annotations

import ast
import json
import signal
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.plugins.site import Site
from tests.plugins.test_public_names import FOR_PLUGINS

CONFIG = '''
from typing import ClassVar

from caramba_core.components import component, option
from caramba_core.modes import Need, Run, Workload


@component
class Nudge(Run):
    """Move every weight a little, step by step."""

    builds: ClassVar[str] = "nudge_runner:NudgeRunner"
    needs: ClassVar[frozenset[Need]] = frozenset({"data.train"})
    changes_weights: ClassVar[bool] = True
    resumes: ClassVar[bool] = True

    steps: int = option(help="steps", minimum=1)
    pause: float = option(default=0.0, help="seconds between steps", minimum=0.0)
    trains: tuple[str, ...] = option(default=("*",), help="what moves")

    def workload(self, evaluation, vocab_size):
        return Workload(batch_size=2, context=16, dtype=self.dtype, sequences=2 * self.steps)
'''

RUNNER = """
import time

import torch
from torch.nn import functional as F

from caramba_core.modes import Results
from caramba_plugins_standard.training.windows import windows_of


class NudgeRunner:
    def __init__(self, run, context):
        self.settings, self.context = run, context

    def run(self):
        context, student = self.context, self.context.student
        optimizer = torch.optim.AdamW([parameter for _, parameter in context.trainable()], lr=1e-2)
        torch.manual_seed(context.seed)
        kept = context.restore(optimizer)
        step, drawn = kept.get("step", 0), kept.get("drawn", 0.0)
        windows = windows_of(context, 16)
        while step < self.settings.steps:
            tokens = windows.batch(2 * step, 2).to(context.device)
            with context.autocast():
                logits = student(tokens[:, :-1])
            optimizer.zero_grad()
            F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
            optimizer.step()
            drawn += float(torch.rand(()))
            step += 1
            time.sleep(self.settings.pause)
            stops = context.should_stop()
            if step % 2 == 0 or stops:
                context.save(step, optimizer=optimizer, state={"drawn": drawn})
            if stops:
                return Results(done=context.pause_reason is None)
        context.save(step, optimizer=optimizer, state={"drawn": drawn})
        return Results(entries={"steps": step, "drawn": drawn})
"""

MANIFEST = """
version: 1
name: tiny
model:
  tied_embeddings: true
  embedder: {type: token, vocab_size: 64, d_model: 16}
  topology:
    type: stacked
    layers:
      - {type: residual, layers: [rms_norm, {type: gqa, n_heads: 2, n_kv_heads: 1, head_dim: 8}]}
      - rms_norm
groups:
  - name: main
    data: {train: tokens.npy, heldout: tokens.npy}
    eval: {context: 16, windows: 2}
    runs:
      - {id: push, mode: nudge, steps: 9, seed: 5}
      - {id: look, mode: eval}
"""


@pytest.fixture
def nudge(site: Site, tmp_path: Path) -> Site:
    """Installs the distribution; the folder has a manifest with its data."""
    site.add(
        "caramba-plugin-nudge",
        entries={"caramba.mode": {"nudge": "nudge:Nudge"}},
        modules={"nudge": CONFIG, "nudge_runner": RUNNER},
    )
    np.save(tmp_path / "tokens.npy", (np.arange(600) % 50).astype("uint16"))
    (tmp_path / "tiny.yml").write_text(MANIFEST)
    return site


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").iterdir())
    names = ("model", "optimizer")
    return {
        f"{name}/{key}": value for name in names for key, value in load_file(newest / f"{name}.safetensors").items()
    }


def kill_behind_the_first_checkpoint(site: Site, folder: Path, *arguments: str) -> None:
    started = site.start("caramba", "run", *arguments, cwd=folder)
    saved = folder / "runs/tiny/main/push/checkpoints/step_000002"
    while started.process.is_alive() and not saved.exists():
        time.sleep(0.02)
    assert started.process.is_alive(), "the run ended before it was killed"
    started.send_signal(signal.SIGKILL)
    assert started.ended().code == -signal.SIGKILL


def test_documented_names_are_enough() -> None:
    parsed = (node for text in (CONFIG, RUNNER) for node in ast.walk(ast.parse(text)))
    imported = [
        node for node in parsed if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("caramba")
    ]
    for module, name in ((str(node.module), alias.name) for node in imported for alias in node.names):
        assert module in FOR_PLUGINS and name in import_module(module).__all__, f"{module}.{name}"


@pytest.mark.slow
def test_a_mode_trains_is_killed_resumes_and_is_reported(nudge: Site, tmp_path: Path) -> None:
    planned = nudge.caramba("compile", "tiny.yml", "--json", cwd=tmp_path)
    assert planned.code == 0, planned.err
    push, look = json.loads(planned.out)[0]["runs"]
    assert push["trained_parameters"] > 0 and push["tokens"] == 9 * 2 * 16 and push["memory"]["gradients"] > 0
    assert look["continues"] == "push"
    whole = nudge.caramba("run", "tiny.yml", "--output", "whole", cwd=tmp_path)
    assert whole.code == 0, whole.err
    expected = tmp_path / "whole/tiny/main/push"

    kill_behind_the_first_checkpoint(nudge, tmp_path, "tiny.yml", "--set", "groups.0.runs.0.pause=0.3")
    folder = tmp_path / "runs/tiny/main/push"
    assert not (folder / "summary.json").exists()
    pause = ("--set", "groups.0.runs.0.pause=0.3")
    refused = nudge.caramba("run", "tiny.yml", *pause, cwd=tmp_path)
    assert refused.code == 2 and "add --resume to go on from its last checkpoint" in refused.said
    resumed = nudge.caramba("run", "tiny.yml", *pause, "--resume", cwd=tmp_path)
    assert resumed.code == 0, resumed.err
    assert "push: going on from" in resumed.said

    ours, theirs = tensors(folder), tensors(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    found, undisturbed = summary(folder), summary(expected)
    assert found["drawn"] == undisturbed["drawn"]  # the random generators go on, too
    assert found["perplexity"] == undisturbed["perplexity"]
    assert found["perplexity"]["end"] < found["perplexity"]["start"]
    assert summary(tmp_path / "runs/tiny/main/look")["perplexity"]["end"] == found["perplexity"]["end"]


def test_a_mode_that_saves_nothing_is_told_so(nudge: Site, tmp_path: Path) -> None:
    (nudge.folder / "nudge_runner.py").write_text(RUNNER.replace("context.save(step, ", "dict("))
    ran = nudge.caramba("run", "tiny.yml", cwd=tmp_path)
    assert ran.code == 2
    assert "run push ended without a checkpoint, and mode nudge changes weights" in ran.said


def test_settings_of_a_mode_are_checked_like_a_components(nudge: Site, tmp_path: Path) -> None:
    for change, words in (
        ("steps=0", "groups.0.runs.0.steps: 0 is below 1"),
        ("stepz=3", "unknown key 'stepz' of nudge"),
        ("trains=[atention]", "'atention' matches no node of the model, did you mean 'attention'?"),
        ("mode=caramba-plugin-nudje:nudge", "there is no mode 'caramba-plugin-nudje:nudge'"),
    ):
        ran = nudge.caramba("run", "tiny.yml", "--set", f"groups.0.runs.0.{change}", "--dry-run", cwd=tmp_path)
        assert ran.code == 2 and words in ran.said, ran.said
    qualified = nudge.caramba(
        "run", "tiny.yml", "--set", "groups.0.runs.0.mode=caramba-plugin-nudge:nudge", "--dry-run", cwd=tmp_path
    )
    assert qualified.code == 0, qualified.err
    needed = nudge.caramba("compile", "tiny.yml", "--set", "groups.0.data={heldout: tokens.npy}", cwd=tmp_path)
    assert "mode nudge needs data.train in its group" in needed.said


def test_a_run_outlives_a_new_option_of_its_plugin(nudge: Site, tmp_path: Path) -> None:
    for _ in range(3):  # two windows of the start, then a step
        stopped = nudge.caramba("run", "tiny.yml", "--minutes", "0", cwd=tmp_path)
    assert stopped.code == 0 and "push stopped at step 1" in stopped.said, stopped.err
    more = CONFIG.replace("    pause:", '    scale: float = option(default=1.0, help="something new")\n    pause:')
    (nudge.folder / "nudge.py").write_text(more)
    again = nudge.caramba("run", "tiny.yml", "--resume", cwd=tmp_path)
    assert again.code == 0, again.err
    assert summary(tmp_path / "runs/tiny/main/push")["steps"] == 9
    spelled = MANIFEST.replace("steps: 9, seed: 5", "seed: 5.0, steps: 9").replace("seed: 5.0", "seed: 5")
    (tmp_path / "tiny.yml").write_text(spelled.replace("- rms_norm\n", "- {type: rms_norm}\n"))
    assert "done already" in nudge.caramba("run", "tiny.yml", cwd=tmp_path).said
    other = nudge.caramba("run", "tiny.yml", "--set", "groups.0.runs.0.scale=2", cwd=tmp_path)
    assert other.code == 2 and "another version of this manifest" in other.said
