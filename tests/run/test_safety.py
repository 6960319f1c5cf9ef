"""Steps that are left out, checkpoints that stay, and what a run without memory says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.training import Keep, Training
from caramba_plugins_standard.training import loop as training_loop
from caramba_plugins_standard.training.retention import Retention
from caramba_plugins_standard.training.skipping import Skipping
from safetensors.torch import load_file

from caramba_core.cli import main
from caramba_core.manifest.load import load_manifest
from caramba_core.run.experiment import Experiment
from tests.plugins.test_hooks_in_runs import MANIFEST

FOLDER = "runs/tiny/main/first"


class Killed(BaseException):
    """What ends a process without a word."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 60, 700).astype(np.uint16))
    return tmp_path


def written(folder: Path, settings: str, steps: int = 6) -> Path:
    text = MANIFEST.replace("evaluate_every: 3", settings).replace("steps: 6", f"steps: {steps}")
    (folder / "m.yml").write_text(text)
    return folder / "m.yml"


def run(folder: Path, settings: str, *arguments: str, steps: int = 6) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(written(folder, settings, steps)), "--output", str(folder / "runs"), *arguments])
    return int(ended.value.code or 0)


def lines(folder: Path) -> list[dict[str, Any]]:
    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    text = (folder / FOLDER / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refused) for line in text.splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(max((folder / FOLDER / "checkpoints").iterdir()) / "model.safetensors")


def steps_of(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (folder / FOLDER / "checkpoints").iterdir())


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The steps whose gradient is not finite, counted over all calls of the command."""
    steps, calls, norm = set[int](), 0, torch.nn.utils.clip_grad_norm_

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return norm(*arguments) * (float("nan") if calls in steps else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", counted)
    return steps


# ------------------------------------------------------------------------------------------------ steps left out


def test_a_step_that_is_left_out_moves_nothing(
    folder: Path, broken: set[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken |= {3, 5}
    assert run(folder, "on_nonfinite: skip 1") == 0
    assert "step 3 is left out: gradient_norm not finite" in capsys.readouterr().out
    left = [line for line in lines(folder) if "left_out" in line]
    assert [line["step"] for line in left] == [3, 5]
    assert all("loss" in line and "gradient_norm" not in line for line in left)
    assert json.loads((folder / FOLDER / "summary.json").read_text())["steps_left_out"] == 2
    found = weights(folder)
    broken.clear()
    step, steps = torch.optim.AdamW.step, 0

    def lazy(optimizer: torch.optim.AdamW) -> None:
        nonlocal steps
        steps += 1
        if steps not in (3, 5):
            step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", lazy)
    assert run(folder, "clip: 1.0", "--again") == 0
    assert all(torch.equal(tensor, found[name]) for name, tensor in weights(folder).items())


def test_without_a_checkpoint_a_changed_run_begins_anew(
    folder: Path, broken: set[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing of what was refused at its start has to be removed first."""
    broken.add(1)
    assert run(folder, "evaluate_every: 3, clip: 0.25") == 4
    capsys.readouterr()
    assert run(folder, "evaluate_every: 3, clip: 0.5") == 0
    assert "first: it had no checkpoint and begins anew, changed: groups.main.runs.first.train.clip" in " ".join(
        capsys.readouterr().out.split()
    )
    assert len([line for line in lines(folder) if "loss" in line]) == 6
    assert run(folder, "evaluate_every: 3, clip: 0.75") == 2  # now there is something to lose


def test_too_many_in_a_row_end_the_run_across_a_resume(
    folder: Path, broken: set[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken |= {2, 3, 4}
    settings, step, steps = "on_nonfinite: skip 2, checkpoint_every: 1", training_loop.TrainRunner._one_step, 0

    def dies_before_the_fourth(runner: Any, bar: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Killed
        step(runner, bar)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training_loop.TrainRunner, "_one_step", dies_before_the_fourth)
        Experiment(load_manifest(str(written(folder, settings))), output=folder / "runs").complete()
    assert steps_of(folder) == [2, 3]
    assert run(folder, settings, "--resume") == 4
    assert "step 4: gradient_norm is not finite" in capsys.readouterr().err
    assert run(folder, settings.replace("skip 2", "skip 3"), "--resume") == 0, "more may be skipped from here on"


def test_gradients_far_above_the_usual_are_left_out() -> None:
    settings = Training(strategy=Pretrain(), lr=0.1, skip_spikes=4.0)
    skipping = Skipping(settings, {})
    for number in range(40):
        assert skipping.reason({"loss": 1.0, "gradient_norm": 1.0 + number % 3}) is None
    again = Skipping(settings, json.loads(json.dumps(skipping.state())))
    for one in (skipping, again):
        assert one.reason({"loss": 1.0, "gradient_norm": 9.0}) == "gradient_norm 9 is 4.5 times the usual one"
        assert one.reason({"loss": 1.0, "gradient_norm": 7.9}) is None
        assert one.reason({"loss": float("nan"), "gradient_norm": 1.0}) is None, "which ends the run"
    assert skipping.state() == again.state()
    usual = [again.reason({"loss": 1.0, "gradient_norm": 30.0}) for _ in range(100)]
    assert usual[0] is not None
    assert usual[-1] is None, "what stays large becomes usual"
    plain = Skipping(Training(strategy=Pretrain(), lr=0.1), {})
    assert not plain.judges
    assert plain.state() == {}


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        (Keep(), [8, 9]),
        (Keep(last=1), [9]),
        (Keep(last=100), [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (Keep(last=1, every=3), [3, 6, 9]),
        (Keep(last=1, best="perplexity"), [4, 9]),
        (Keep(last=2, every=6, best="perplexity"), [4, 6, 8, 9]),
    ],
)
def test_checkpoints_that_stay(keep: Keep, kept: list[int]) -> None:
    """Measurements of other windows, and steps without a checkpoint, do not count."""
    lines: list[dict[str, Any]] = [{"step": 2, "loss": 1.0}, {"step": 2, "perplexity": 9.0, "measured": "these"}]
    lines += [{"step": 3, "perplexity": 1.0, "measured": "others"}, {"step": 4, "perplexity": 5.0, "measured": "these"}]
    retention = Retention(keep, lines, "these")
    for step, figure in ((6, 7.0), (8, 5.0), (11, 1.0)):
        retention.measured(step, figure)
    checkpoints = [Path(f"step_{step:06d}") for step in range(1, 10)]
    assert retention.kept(checkpoints) == [checkpoints[step - 1] for step in kept]


def test_what_is_kept_is_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {2: 9.0, 4: 5.0, 6: 7.0, 8: 5.0}
    monkeypatch.setattr(training_loop, "measure_step", lambda context, step: SimpleNamespace(perplexity=figures[step]))
    settings = "evaluate_every: 2, checkpoint_every: 100, keep: {last: 1, every: 6, best: perplexity}"
    assert run(folder, settings, steps=9) == 0
    assert steps_of(folder) == [4, 6, 9]


def test_the_best_is_known_again_after_a_resume(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {2: 5.0, 4: 9.0, 6: 8.0, 8: 7.0}
    monkeypatch.setattr(training_loop, "measure_step", lambda context, step: SimpleNamespace(perplexity=figures[step]))
    settings = "evaluate_every: 2, checkpoint_every: 1, keep: {last: 1, best: perplexity}"
    assert run(folder, settings, steps=5) == 0
    assert steps_of(folder) == [2, 5]
    assert run(folder, settings, "--resume", steps=9) == 0, "a finished run goes on for more steps"
    assert steps_of(folder) == [2, 9]


def test_the_best_of_nothing_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "keep: {best: perplexity}") == 2
    said = capsys.readouterr().err
    assert "m.yml:21:" in said
    assert "nothing is measured on the way" in said
    assert run(folder, "on_nonfinite: skip") == 2
    assert "stop, or skip K" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ memory


FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB\nmore"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
    MemoryError(),
)


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_without_memory_the_plan_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def full(optimizer: torch.optim.AdamW) -> None:
        raise error

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    assert run(folder, "clip: 1.0") == 5
    said = " ".join(capsys.readouterr().err.split())
    plan = json.loads((folder / FOLDER / "plan.json").read_text())["runs"][0]["memory"]
    assert f"out of memory in step 1: {str(error).partition(chr(10))[0] or 'the allocation failed'}; " in said
    assert f"the plan had predicted {plan['total'] / 1024:.1f} KiB (logits " in said
    assert "lower train.strategy.logit_rows (2048)" in said
    assert "lower train.batch_size (2) and raise train.accumulate (1) as much" in said
