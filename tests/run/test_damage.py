"""A checkpoint that is damaged, mixed or swapped is refused by name; a run's inputs stay what they were."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from caramba_core.cli import main

from .workspace import make_workspace

FILES = ("model.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")


def caramba(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose run ``finetune`` stopped with checkpoints of steps 2 and 3; 6 were asked for."""
    folder = tmp_path_factory.mktemp("stopped")
    manifest = make_workspace(folder)
    manifest.write_text(manifest.read_text().replace("checkpoint_every: 2", "checkpoint_every: 1"))
    runs = ("--output", folder / "runs")
    assert caramba("run", manifest, "--run", "convert", *runs) == 0
    for _ in range(3):
        assert caramba("run", manifest, "--minutes", "0", "--resume", *runs) == 0
    return folder


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    return folder


def run(folder: Path, *arguments: str) -> int:
    return caramba("run", folder / "manifest.yml", "--output", folder / "runs", *arguments)


def checkpoints(folder: Path, name: str = "finetune") -> list[Path]:
    return sorted((folder / "runs" / "small" / "half" / name / "checkpoints").glob("step_*"))


def flipped(place: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[min(len(data) - 1, int(place * len(data)))] ^= 4
        file.write_bytes(data)

    return damage


def zeroed(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    **{f"a bit at {place}": flipped(place) for place in (0.0, 0.001, 0.25, 0.5, 0.75, 0.99, 1.0)},
    "emptied": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0" * 8),
    "zeroed": zeroed,
    "gone": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir()),  # type: ignore[dict-item, return-value]
    "other text": lambda file: file.write_text('{"step": 3}'),  # type: ignore[dict-item, return-value]
    "of the step before": lambda file: shutil.copyfile(file.parent.with_name("step_000002") / file.name, file),  # type: ignore[dict-item, return-value]
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file(copy: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str) -> None:
    newest = checkpoints(copy)[-1]
    assert newest.name == "step_000003"
    before = (newest / name).read_bytes()
    DAMAGES[damage](newest / name)
    if (newest / name).is_file() and (newest / name).read_bytes() == before:
        pytest.skip("the same content: no number was drawn in the last step")
    assert run(copy, "--resume") == 2
    said = capsys.readouterr().err
    assert f"error: the checkpoint {newest} is damaged: " in said
    assert "internal" not in said
    assert "--resume --resume-from 2" in said
    assert newest.exists()


def test_the_checkpoint_before_a_damaged_one(copy: Path, stopped: Path, tmp_path: Path) -> None:
    """The run goes on from there to the very same end."""
    flipped(0.5)(checkpoints(copy)[-1] / "model.safetensors")
    assert run(copy, "--resume", "--resume-from", "7") == 2
    assert run(copy, "--resume", "--resume-from", "2") == 0
    whole = tmp_path / "whole"
    shutil.copytree(stopped, whole)
    assert run(whole, "--resume") == 0
    ours, theirs = (checkpoints(folder)[-1] / "model.safetensors" for folder in (copy, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    lines = [
        [{**json.loads(line), "seconds": 0} for line in (path.parents[2] / "metrics.jsonl").read_text().splitlines()]
        for path in (ours, theirs)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found[-1].rename(found[-1].with_name("step_000005")), "it was made at step 3, and copied"),
        (lambda found: shutil.copytree(found[-2], found[-1].with_name("step_000004")), "it was made at step 2"),
        (lambda found: found[-1].rename(found[-1].with_name("step_x")), None),
    ],
)
def test_folders_that_were_renamed_or_copied(
    copy: Path, capsys: pytest.CaptureFixture[str], change: Callable[[list[Path]], object], words: str | None
) -> None:
    change(checkpoints(copy))
    assert run(copy, "--resume") == (0 if words is None else 2)
    assert words is None or words in capsys.readouterr().err


def test_a_checkpoint_of_another_run(copy: Path, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "runs" / "small" / "half" / "finetune")
    for _ in range(3):
        assert run(copy, "--minutes", "0", "--resume") == 0
    shutil.rmtree(checkpoints(copy)[-1])
    shutil.copytree(checkpoints(stopped)[-1], checkpoints(copy)[-1].with_name("step_000003"))
    assert run(copy, "--resume") == 2
    assert "is of another run than" in capsys.readouterr().err


def test_a_result_that_is_continued_is_checked(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "runs" / "small" / "half" / "finetune")
    flipped(0.5)(checkpoints(copy, "convert")[-1] / "model.safetensors")
    assert run(copy) == 2
    assert "model.safetensors is not as it was written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["state.json", "evaluation/start.npy"])
@pytest.mark.parametrize("damage", ["a bit at 0.5", "emptied", "cut", "zeroed", "gone", "a folder"])
def test_damage_beside_the_checkpoints(copy: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str) -> None:
    """Refused; a measurement that is gone is taken from the run before, whose end it is."""
    file = copy / "runs" / "small" / "half" / "finetune" / name
    DAMAGES[damage](file)
    code = run(copy, "--resume")
    said = capsys.readouterr().err
    assert code == (0 if (damage, name) == ("gone", "evaluation/start.npy") else 2)
    assert "internal" not in said


def test_every_number_of_a_state_is_held_against_its_hash(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy / "runs" / "small" / "half" / "convert" / "state.json"
    text = file.read_text()
    assert '"calibration_tokens": 512' in text
    for before, after in (('"calibration_tokens": 512', '"calibration_tokens": 513'), ('"step": 0', '"step": 1')):
        file.write_text(text.replace(before, after))
        assert run(copy, "--resume") == 2
        assert "state.json is damaged: it is not as it was written" in capsys.readouterr().err
    file.write_text("[]")
    assert run(copy, "--resume") == 2


@pytest.mark.parametrize("which", ["train", "heldout", "teacher"])
@pytest.mark.parametrize("when", ["resuming", "the next run"])
def test_inputs_that_were_swapped(copy: Path, capsys: pytest.CaptureFixture[str], which: str, when: str) -> None:
    if when == "the next run":
        shutil.rmtree(copy / "runs" / "small" / "half" / "finetune")
    if which == "teacher":
        file = copy / "teacher" / "model.safetensors"
        tensors = load_file(file)
        tensors["model.layers.1.mlp.up_proj.weight"] *= 1.01
        save_file(tensors, file, metadata={"format": "pt"})
    else:
        np.save(copy / f"{which}.npy", np.load(copy / f"{which}.npy")[::-1].copy())
    assert run(copy, "--resume") == 2
    said = capsys.readouterr().err
    assert re.search(rf"{which}( in float32)?: not what", said)
    assert "--again" in said


def test_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder that was there stays beside the new one."""
    before = [path.name for path in checkpoints(copy)]
    assert run(copy, "--again", "--run", "finetune") == 0
    assert [path.name for path in checkpoints(copy)] == ["step_000005", "step_000006"]
    kept = copy / "runs" / "small" / "half" / ".finetune.previous" / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == before
    assert run(copy, "--again", "--resume") == 2


def test_what_changed_is_said(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(copy, "--set", "groups.0.eval.windows=3") == 2
    said = capsys.readouterr().err
    assert "groups.half.eval.windows: 4 -> 3" in said
    assert "add --resume to measure it again" in said
    assert run(copy, "--resume", "--set", "vars.trains=[attention]") == 2
    said = capsys.readouterr().err
    assert 'groups.half.runs.finetune.train.trains: ["attention", "norm"] -> ["attention"]' in said
    assert "--again" in said


def test_what_is_left_of_a_run_may_change(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lower rate on the way, more steps at the end; fewer than were done, or another rate alone, are refused."""
    changed = ("--set", "vars.lr=5.0e-4", "--set", "vars.steps=8")
    assert run(copy, "--resume", *changed) == 0
    assert "groups.half.runs.finetune.train.lr: 0.001 -> 0.0005" in capsys.readouterr().out
    summary = json.loads((copy / "runs" / "small" / "half" / "finetune" / "summary.json").read_text())
    assert summary["steps"] == 8
    assert len(summary["changed_on_the_way"]) == 2
    assert run(copy, *changed) == 0
    more = ("--set", "vars.lr=5.0e-4", "--set", "vars.steps=10")
    assert run(copy, *more) == 2
    assert "groups.half.runs.finetune.steps: 8 -> 10" in capsys.readouterr().err
    assert run(copy, "--resume", *more) == 0
    assert [path.name for path in checkpoints(copy)] == ["step_000009", "step_000010"]
    for refused in (("vars.steps=9", "vars.lr=5.0e-4"), ("vars.steps=10", "vars.lr=1.0e-4")):
        assert run(copy, "--resume", *(part for one in refused for part in ("--set", one))) == 2
    capsys.readouterr()
    assert run(copy, "--resume", "--set", "vars.steps=9", "--set", "vars.lr=5.0e-4") == 2
    assert "(it has taken 10 steps)" in capsys.readouterr().err
    assert run(copy, "--resume", "--set", "vars.steps=12", "--set", "vars.lr=1.0e-4") == 0
    lines = map(json.loads, (copy / "runs" / "small" / "half" / "finetune" / "metrics.jsonl").read_text().splitlines())
    rates = {line["step"]: line["lr"] for line in lines if "lr" in line}
    for step in (11, 12):  # the cosine is that of all 12 steps
        assert rates[step] == pytest.approx(1.0e-4 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 12)))
