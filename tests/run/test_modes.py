"""What modes declare, as the command and the plan heed it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from caramba_core.cli import main

from .workspace import make_workspace


def caramba(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def with_runs(folder: Path, *runs: str) -> Path:
    """The workspace's manifest with more runs at the end of its group."""
    manifest = make_workspace(folder)
    manifest.write_text(manifest.read_text() + "".join(f"      - {run}\n" for run in runs))
    return manifest


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").iterdir())


@pytest.mark.parametrize("mode", ["generate", "caramba-plugins-standard:generate"])
@pytest.mark.parametrize(("cache", "per_token"), [("null", 3 * 22 * 4), ("int8", 3 * (22 + 3 * 4))])
def test_a_plan_counts_the_cache_that_tokens_are_generated_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, cache: str, per_token: int
) -> None:
    say = f"{{id: say, mode: '{mode}', prompt: a, max_new_tokens: 50, eval: {{cache: {cache}}}}}"
    assert caramba("compile", with_runs(tmp_path, say), "--json") == 0
    plan = json.loads(capsys.readouterr().out)[0]["runs"][-1]
    # three layers of 4 + 8 + 10 values; in int8 each of the three entries is a block with a step and an offset
    assert plan["memory"]["cache"] == 50 * per_token
    assert plan["context"] == 50


def test_a_run_that_changes_nothing_hands_on_what_it_started_from(tmp_path: Path) -> None:
    runs = ("{id: look, mode: eval}", "{id: more, mode: train, steps: 0, train: {strategy: pretrain, lr: 1.0e-3}}")
    manifest = with_runs(tmp_path, *runs)
    assert caramba("run", manifest, "--output", tmp_path / "runs") == 0
    group = tmp_path / "runs" / "small" / "half"
    trained, more = (load_file(newest(group / name) / "model.safetensors") for name in ("finetune", "more"))
    assert all(torch.equal(trained[name], tensor.to(trained[name])) for name, tensor in more.items())
    assert not (group / "look" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("{id: say, mode: generate, prompt: a}", "run say needs a tokenizer: the teacher's checkpoint carries none"),
        (
            "{id: again, mode: convert, start: {transplant: gqa_to_mla}}",
            "model.blocks.0.attention",
        ),
        (
            "{id: more, mode: allocate, cache_budget: 0.5x, start: {tokens: 3900, max_context: 32}}",
            "too few to calibrate on",
        ),
    ],
)
def test_a_dry_run_says_what_a_mode_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, words: str
) -> None:
    assert caramba("run", with_runs(tmp_path, run), "--dry-run", "--output", tmp_path / "runs") == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_starting_over_keeps_the_old_checkpoint_until_there_is_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mode that does not resume, ended when its checkpoint was published."""
    manifest = make_workspace(tmp_path)
    command = ("run", manifest, "--run", "convert", "--output", tmp_path / "runs")
    folder = tmp_path / "runs" / "small" / "half" / "convert"

    def ended(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("caramba_core.run.directory.RunDirectory.update", ended)
        assert caramba(*command) == 130
    first = newest(folder).stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr("caramba_plugins_upcycle.calibration.Calibration.run", ended)
        assert caramba(*command) == 130
    assert newest(folder).stat().st_ino == first
    assert caramba(*command) == 0
    assert newest(folder).stat().st_ino != first
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000000"]


def test_a_conversion_that_was_done_is_measured_without_converting_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_workspace(tmp_path)
    command = ("run", manifest, "--run", "convert", "--output", tmp_path / "runs")
    folder = tmp_path / "runs" / "small" / "half" / "convert"

    def ended(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("caramba_plugins_standard.measuring.Perplexities.after", ended)
        assert caramba(*command) == 130
    first = newest(folder).stat().st_ino
    monkeypatch.setattr("caramba_plugins_upcycle.calibration.Calibration.run", ended)
    assert caramba(*command) == 0
    assert newest(folder).stat().st_ino == first
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["calibration_tokens"] == 512
    assert set(summary["perplexity"]) == {"teacher", "start", "end"}


def test_strategies_and_evaluations_are_held_against_their_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = make_workspace(tmp_path)
    for change, words in (
        ("groups.0.runs.1.train.evaluate_every=2", "runs.1.train.evaluate_every: there is nothing to measure on"),
        ("groups.0.runs.0.cache_budget=0.5x", "runs.0.cache_budget: unknown key 'cache_budget' of convert"),
    ):
        changes = ("--set", "groups.0.data={train: train.npy}", "--set", change)
        assert caramba("compile", manifest, *changes) == 2
        assert words in " ".join(capsys.readouterr().err.split())
