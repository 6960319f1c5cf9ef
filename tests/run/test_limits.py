"""A call ends between two units of work, what was done is kept, and how a run is measured may change on the way."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_standard import perplexity
from caramba_plugins_upcycle.calibration import Calibration

from caramba_core.cli import main
from caramba_core.run.directory import RunDirectory
from caramba_core.sites import Site

from .workspace import make_workspace

EVERY = ("--set", "groups.0.runs.1.train.evaluate_every=3")


def caramba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def run(folder: Path, *arguments: str) -> int:
    return caramba("run", folder / "manifest.yml", "--output", folder / "runs", *arguments)


def of(folder: Path, name: str = "finetune") -> Path:
    return folder / "runs" / "small" / "half" / name


def summary(folder: Path, name: str = "finetune") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((of(folder, name) / "summary.json").read_text())
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (of(folder) / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def weights(folder: Path) -> bytes:
    return (max((of(folder) / "checkpoints").iterdir()) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    make_workspace(folder)
    assert run(folder, *EVERY) == 0
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_workspace(tmp_path)
    return tmp_path


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


# ------------------------------------------------------------------------------------------------ limits of time


def test_every_call_does_one_unit_of_work(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Windows are measured, a batch a call, before, within and behind training: with the very same result."""
    said, spent = list[str](), 0.0
    for _ in range(60):
        assert run(folder, "--minutes", "0", "--resume", *EVERY) == 0
        said.append(capsys.readouterr().out)
        if len(said) == 3:  # the teacher is measured, and nothing else was done
            spent = json.loads((of(folder, "convert") / "state.json").read_text())["seconds"]
        if (of(folder) / "summary.json").exists():
            break
    # teacher, conversion by stages, end of it; steps, two measurements between them, the end
    assert 20 <= len(said) <= 36
    assert "convert stopped at step 0: the time limit of this call was reached, 1 of 4 windows" in said[0]
    assert any("the time limit of this call was reached, 2 of 7 stages of the conversion" in each for each in said)
    assert any("finetune stopped at step 3: the time limit of this call was reached, 1 of 4" in each for each in said)
    assert all("--resume goes on" in each for each in said[:-1])
    assert weights(folder) == weights(whole)
    assert metrics(folder) == metrics(whole)
    assert summary(folder)["perplexity"] == summary(whole)["perplexity"]
    assert summary(folder, "convert")["seconds"] > spent > 0
    assert not [*folder.glob("runs/**/.*"), *folder.glob("runs/**/*.part*"), *folder.glob("runs/**/midway")]


def test_a_run_that_would_begin_behind_the_limit_does_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("caramba_plugins_standard.measuring.Perplexities.before", lambda self: ())
    monkeypatch.setattr("caramba_plugins_standard.measuring.Perplexities.after", lambda self: ())
    while not (of(folder, "convert") / "summary.json").exists():
        capsys.readouterr()
        assert run(folder, "--minutes", "0") == 0
    assert "half/finetune did not begin: the time limit of this call was reached; --resume goes on" in (
        capsys.readouterr().out
    )
    assert not of(folder).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_windows_that_were_measured(
    folder: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    measured, original = 0, perplexity._nll

    def counting(*arguments: Any) -> torch.Tensor:
        nonlocal measured
        measured += 1
        if measured == 2:
            os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(perplexity, "_nll", counting)
    assert run(folder, *EVERY) == 128 + number
    said = capsys.readouterr()
    assert f"convert stopped at step 0: stopped by {number.name}, 2 of 4 windows" in said.out
    assert "the same command with --resume goes on" in said.err
    assert run(folder, "--run", "convert", "--resume", *EVERY) == 0
    assert measured == 4 + 4  # teacher and end, no window twice
    assert summary(folder, "convert")["perplexity"] == summary(whole, "convert")["perplexity"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("refit", ["false", "true"])
def test_a_signal_keeps_the_stages_that_were_converted(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    refit: str,
) -> None:
    """The rest is converted in the next call, to the very same weights; and again where the manifest has changed."""
    converted, original = list[str](), Calibration._convert

    def counting(self: Calibration, site: Site, *rest: Any) -> dict[str, Any]:
        converted.append(site.name)
        if len(converted) == 2:
            os.kill(os.getpid(), number)
        return original(self, site, *rest)

    asked = ("--run", "convert", "--set", f"groups.0.runs.0.start.refit_mlp={refit}")
    monkeypatch.setattr(Calibration, "_convert", counting)
    assert run(folder, *asked) == 128 + number
    said = capsys.readouterr()
    assert f"convert stopped at step 0: stopped by {number.name}, 3 of 7 stages of the conversion" in said.out
    shutil.copytree(folder, folder / "copy")
    assert run(folder, *asked, "--resume") == 0
    assert len(converted) == 3
    assert not (of(folder, "convert") / "midway").exists()
    whole = folder / "whole"
    assert caramba("run", folder / "manifest.yml", "--output", whole, *asked) == 0
    for name in ("calibration.json", "checkpoints/step_000000/model.safetensors", "evaluation/end.npy"):
        expected = (whole / "small" / "half" / "convert" / name).read_bytes()
        assert (of(folder, "convert") / name).read_bytes() == expected, name
    kept = of(folder / "copy", "convert") / "midway"
    other = ("--run", "convert", "--set", "groups.0.runs.0.seed=4")
    shutil.move(kept, folder / "kept")
    converted[:] = ["another call's"] * 3
    shutil.rmtree(of(folder / "copy", "convert"))
    of(folder / "copy", "convert").mkdir()
    shutil.move(folder / "kept", kept)
    assert run(folder / "copy", *other) == 0
    assert len(converted) == 3 + 3  # what was done for another seed is not taken up


# ------------------------------------------------------------------------------------------------ other measurements


OTHERS = {
    "windows": ("groups.0.eval.windows=3",),
    "context": ("groups.0.eval.context=24",),
    "cache": ("groups.0.eval.cache=int8",),
    "text": ("groups.0.data.heldout=other.npy",),
    "nothing": ("groups.0.data={train: train.npy}",),
}


def changed(name: str) -> list[str]:
    return [part for one in OTHERS[name] for part in ("--set", one)]


def write_other(folder: Path) -> None:
    walk = np.random.default_rng(5).choice([1, 2, 5], size=400)
    np.save(folder / "other.npy", (np.cumsum(walk) % 64).astype(np.uint16))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that were measured otherwise from the start."""

    @functools.cache
    def made(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        make_workspace(folder)
        write_other(folder)
        assert run(folder, *changed(name)) == 0
        return folder

    return made


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "nothing"])
@pytest.mark.parametrize("steps", [3, 6], ids=["on the way", "at the end"])
def test_another_evaluation(
    folder: Path, whole: Path, fresh: Callable[[str], Path], capsys: pytest.CaptureFixture[str], name: str, steps: int
) -> None:
    """Weights stay, every measurement is made anew: as if the run had been measured like that from the start."""
    write_other(folder)
    assert run(folder, "--run", "convert") == 0
    for _ in range(steps):
        assert run(folder, "--minutes", "0", "--resume") == 0
    if steps == 6:
        assert run(folder, "--resume") == 0
    assert (of(folder) / "summary.json").exists() == (steps == 6)
    capsys.readouterr()
    assert run(folder, *changed(name)) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(folder, "--resume", *changed(name)) == 0
    assert "and so measured anew" in capsys.readouterr().out
    assert weights(folder) == weights(whole)
    for one in ("convert", "finetune"):
        expected, found = summary(fresh(name), one), summary(folder, one)
        for key in ("perplexity", "perplexity_ratio", "log_perplexity_change", "cache_bytes_per_token"):
            assert found[key] == expected[key], (one, key)
        assert any("groups.half" in change for change in found["changed_on_the_way"])
    assert run(folder, *changed(name)) == 0
    assert "done already" in capsys.readouterr().out


def test_lines_of_metrics_say_what_they_were_measured_on(folder: Path) -> None:
    assert run(folder, "--run", "convert") == 0
    for _ in range(20):
        assert run(folder, "--minutes", "0", "--resume", *EVERY) == 0
        if any("perplexity" in line for line in metrics(folder)):
            break
    assert run(folder, "--resume", *EVERY, *changed("windows")) == 0
    lines = [line for line in metrics(folder) if "perplexity" in line]
    assert [line["step"] for line in lines] == [3, 6]
    assert lines[0]["measured"] != lines[1]["measured"]


def test_what_a_prompt_is_continued_through_is_no_matter_of_measuring() -> None:
    from caramba_plugins_eval.mode import Evaluate
    from caramba_plugins_standard.modes import Generate, Train

    assert Generate.heeds_evaluation
    assert not Train.heeds_evaluation
    assert Evaluate.heeds_evaluation  # its metrics


def test_held_out_tokens_under_the_same_name_are_still_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More steps are no leave to swap the text."""
    np.save(copy / "heldout.npy", np.load(copy / "heldout.npy")[::-1].copy())
    more = ("--set", "vars.steps=8", *EVERY)
    assert run(copy, "--resume", *more, *changed("windows")) == 2
    assert "data.heldout: not what" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ what is continued


def test_checkpoints_of_the_run_before_that_are_gone(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run does not begin from something else without a word; one that has its own checkpoints does not need them."""
    shutil.rmtree(of(copy, "convert") / "checkpoints")
    more = ("--set", "vars.steps=8", *EVERY)
    assert run(copy, "--resume", *more, *changed("windows"), "--run", "finetune") == 2
    assert "whose checkpoints are gone" in capsys.readouterr().err
    assert run(copy, "--resume", *more, "--run", "finetune") == 0
    shutil.rmtree(of(copy))
    assert run(copy, *more) == 2
    assert "half/finetune continues from convert, whose checkpoints are gone" in capsys.readouterr().err


def test_a_result_that_was_made_anew_differently(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a run continues from is one of its inputs."""
    assert run(copy, "--again", "--run", "convert", "--set", "groups.0.runs.0.seed=4", *EVERY) == 0
    directory = RunDirectory(of(copy, "convert"))
    state = directory.begun()
    state.document["groups"]["half"]["runs"]["convert"]["seed"] = 3
    directory.set_state(state)
    assert run(copy, "--resume", "--set", "vars.steps=8", "--run", "finetune", *EVERY) == 2
    assert "the result that it continues from: not what it has read" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ what is chosen


def test_some_groups_of_several(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = folder / "manifest.yml"
    manifest.write_text(f"{manifest.read_text()}  - {{name: b, extends: half}}\n  - {{name: c, extends: half}}\n")
    assert run(folder, "--dry-run", "--group", "c", "--group", "b", "--run", "convert") == 0
    assert "in order: b/convert, c/convert" in " ".join(capsys.readouterr().out.split())


def test_files_have_the_usual_permissions(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        assert run(folder) == 0
    finally:
        os.umask(before)
    files = [path for path in (folder / "runs").rglob("*") if path.is_file()]
    assert {path.name for path in files if path.stat().st_mode & 0o777 != 0o640} == set()


def test_a_checkpoint_that_a_killed_process_left_too_many_is_dropped(folder: Path) -> None:
    assert run(folder) == 0
    checkpoints = of(folder) / "checkpoints"
    RunDirectory(of(folder)).update(status="running", results=None)
    shutil.copytree(checkpoints / "step_000004", checkpoints / "step_000002")
    assert run(folder, "--resume") == 0
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_000004", "step_000006"]
