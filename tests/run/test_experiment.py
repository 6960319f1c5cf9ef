"""The main job in small, through the real command: convert, train, measure, stop, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_upcycle.strategy_runners import divergence_with_gradient
from safetensors.torch import load_file, save_file

from caramba import open as open_model
from caramba_core.cli import main
from caramba_core.manifest.load import load_manifest

from .workspace import make_workspace


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return make_workspace(tmp_path)


def caramba(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    return 0 if code is None else int(code)


def run(manifest: Path, *arguments: str) -> int:
    return caramba("run", manifest, "--output", manifest.parent / "runs", *arguments)


def folder_of(manifest: Path, name: str) -> Path:
    return manifest.parent / "runs" / "small" / "half" / name


def summary(manifest: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder_of(manifest, name) / "summary.json").read_text())
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").iterdir())
    return load_file(newest / "model.safetensors")


def test_the_whole_way(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(manifest) == 0
    shown = capsys.readouterr().out
    assert "attention, norm" in shown
    converted, trained = summary(manifest, "convert"), summary(manifest, "finetune")
    assert converted["calibration_tokens"] == 512
    assert converted["perplexity"]["start"] == converted["perplexity"]["teacher"]
    assert trained["perplexity"]["start"] == converted["perplexity"]["end"]
    assert trained["tokens"] == 6 * 2 * 32
    # counted by hand: float32; teacher 2 heads x (8 keys + 8 values), student 4 + 8 + 10; three layers
    assert converted["cache_bytes_per_token"] == {"teacher": 3 * 32 * 4, "student": 3 * 22 * 4}
    for name in ("convert", "finetune"):
        folder = folder_of(manifest, name)
        assert {"manifest.yml", "plan.json", "summary.json", "state.json", "checkpoints"} <= {
            p.name for p in folder.iterdir()
        }
    lines = [json.loads(line) for line in (folder_of(manifest, "finetune") / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert trained["log_perplexity_change"]["mean"] != 0
    assert "caramba-plugins-dba" in trained["versions"]


def test_a_run_that_continues_from_another_group_can_be_opened(manifest: Path, tmp_path: Path) -> None:
    text = manifest.read_text()
    more = text.partition("      - id: finetune\n")[2].replace("mode: train", "mode: train\n        from: half/convert")
    manifest.write_text(f"{text}  - name: other\n    extends: half\n    runs:\n      - id: more\n{more}")
    assert run(manifest, "--group", "half", "--run", "convert") == 0
    assert run(manifest, "--group", "other") == 0
    folder = manifest.parent / "runs" / "small" / "other" / "more"
    loaded = load_manifest(str(folder / "manifest.yml"))
    assert [group.name for group in loaded.manifest.groups] == ["half", "other"]
    assert {group.teacher.source for group in loaded.manifest.groups if group.teacher} == {"../../../../teacher"}
    found = json.loads((folder / "summary.json").read_text())
    assert open_model(folder).perplexity() == pytest.approx(found["perplexity"]["end"], rel=1e-5)
    assert caramba("export", folder, "--output", tmp_path / "exported") == 0


def test_training_lowers_the_divergence_from_the_teacher(manifest: Path) -> None:
    # without the refit the start leaves something to learn
    assert run(manifest, "--set", "vars.steps=60", "--set", "groups.0.runs.0.start.refit=false") == 0
    lines = [json.loads(line) for line in (folder_of(manifest, "finetune") / "metrics.jsonl").read_text().splitlines()]
    first, last = ([line["kl"] for line in lines[at : at + 10]] for at in (0, 50))
    assert sum(last) < 0.9 * sum(first)


def test_evaluation_in_the_middle_changes_nothing_but_the_record(manifest: Path) -> None:
    assert run(manifest) == 0
    plain = weights(folder_of(manifest, "finetune"))
    measured = ("--set", "groups.0.runs.1.train.evaluate_every=3", "--output", str(manifest.parent / "measured"))
    assert caramba("run", manifest, *measured) == 0
    folder = manifest.parent / "measured" / "small" / "half" / "finetune"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "perplexity" in line] == [3, 6]
    assert lines[-1]["perplexity"] == pytest.approx(
        json.loads((folder / "summary.json").read_text())["perplexity"]["end"]
    )
    assert all(torch.equal(plain[name], tensor) for name, tensor in weights(folder).items())


def test_what_is_frozen_stays_what_it_was(manifest: Path) -> None:
    assert run(manifest) == 0
    before, after = weights(folder_of(manifest, "convert")), weights(folder_of(manifest, "finetune"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".attention." in name or ".norm" in name for name in changed)
    trainable = {n for n in before if (".attention." in n or "norm" in n) and before[n].is_floating_point()}
    assert changed == trainable


def test_a_second_call_has_nothing_to_do(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(manifest) == 0
    before = {path: path.stat().st_mtime_ns for path in (manifest.parent / "runs").rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run(manifest) == 0
    assert "done already" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (manifest.parent / "runs").rglob("*") if path.is_file()}


def test_an_interrupted_run_goes_on_bit_for_bit(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = make_workspace(tmp_path_factory.mktemp("whole"))
    assert run(whole) == 0
    assert run(manifest, "--run", "convert") == 0
    assert run(manifest, "--minutes", "0") == 0  # stops behind the first step
    state = json.loads((folder_of(manifest, "finetune") / "state.json").read_text())
    assert state["status"] == "interrupted"
    assert state["step"] == 1
    assert not (folder_of(manifest, "finetune") / "summary.json").exists()
    assert run(manifest) == 2  # resuming must be asked for
    assert run(manifest, "--resume") == 0
    expected, found = weights(folder_of(whole, "finetune")), weights(folder_of(manifest, "finetune"))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    lines = [json.loads(line) for line in (folder_of(manifest, "finetune") / "metrics.jsonl").read_text().splitlines()]
    other = [json.loads(line) for line in (folder_of(whole, "finetune") / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(line["step"], line["loss"]) for line in other]


@pytest.mark.parametrize(
    "where",
    [
        "caramba_plugins_upcycle.calibration.Calibration.run",
        "caramba_core.run.context.save_checkpoint",
        "caramba_plugins_standard.measuring.Perplexities.after",
    ],
    ids=["calibrating", "publishing its result", "measuring it"],
)
def test_an_interrupted_conversion_is_done_again(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, where: str
) -> None:
    whole = make_workspace(tmp_path_factory.mktemp("whole"))
    assert run(whole, "--run", "convert") == 0

    def interrupted(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, interrupted)
        assert run(manifest, "--run", "convert") == 130
    state = json.loads((folder_of(manifest, "convert") / "state.json").read_text())
    assert state["status"] == "interrupted"
    assert not (folder_of(manifest, "convert") / "summary.json").exists()
    assert run(manifest, "--run", "finetune", "--resume") == 2  # what it starts from is not there
    assert run(manifest, "--run", "convert", "--resume") == 0
    expected, found = weights(folder_of(whole, "convert")), weights(folder_of(manifest, "convert"))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert summary(manifest, "convert")["perplexity"]["end"] == summary(whole, "convert")["perplexity"]["end"]


def test_a_changed_manifest_does_not_mix_with_an_old_run(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(manifest) == 0
    assert run(manifest, "--set", "vars.sem=8") == 2
    assert "another version of this manifest" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_with_code_4_and_keeps_the_last_good_state(
    manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def breaks_at_the_fourth_step(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal calls
        calls += 1
        kl, gradient = divergence_with_gradient(*arguments)
        return kl * (float("nan") if calls == 4 else 1.0), gradient

    monkeypatch.setattr("caramba_plugins_upcycle.strategy_runners.divergence_with_gradient", breaks_at_the_fourth_step)
    assert run(manifest) == 4
    said = capsys.readouterr().err
    assert "step 4: loss" in said
    assert "step_000002" in said
    folder = folder_of(manifest, "finetune")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000002"]
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())
    assert not (folder / "summary.json").exists()
    monkeypatch.undo()
    assert "hint: lower train.lr" in said
    hint = ("--set", "vars.lr=1.0e-4", "--set", "groups.0.runs.1.train.clip=0.5")
    assert run(manifest, "--resume", *hint) == 0  # as the hint says, to the end
    assert summary(manifest, "finetune")["steps"] == 6
    assert summary(manifest, "finetune")["changed_on_the_way"][0].endswith("train.lr: 0.001 -> 0.0001")


def test_weights_that_are_no_numbers_are_not_saved(
    manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of the optimizer may spoil weights whose loss and gradient were fine."""
    step, steps = torch.optim.AdamW.step, 0

    def spoils_the_fourth(optimizer: torch.optim.AdamW) -> None:
        nonlocal steps
        step(optimizer)
        steps += 1
        if steps == 4:
            optimizer.param_groups[0]["params"][0].data.view(-1)[1] = float("nan")

    monkeypatch.setattr(torch.optim.AdamW, "step", spoils_the_fourth)
    assert run(manifest) == 4
    said = capsys.readouterr().err
    assert "step 4: 1 weights hold NaN or infinity, model." in said
    assert "the last good state is" in said
    folder = folder_of(manifest, "finetune")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_000002"]
    monkeypatch.undo()
    assert run(manifest, "--resume", "--set", "vars.lr=1.0e-4") == 0
    assert all(tensor.isfinite().all() for tensor in weights(folder).values())


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "a missing weights file": (("--set", "groups.0.teacher.source=nowhere"), "nowhere"),
    "a wrong hash": (
        ("--set", "groups.0.teacher.source=teacher/model.safetensors", "--set", f"groups.0.teacher.sha256={'f' * 64}"),
        "SHA-256",
    ),
    "fewer layers than the teacher": (("--set", "vars.layers=2"), "model.blocks.2"),
    "a pattern that matches nothing": (("--set", "vars.trains=[atention]"), "atention"),
    "held-out text that is too short": (("--set", "groups.0.eval.windows=4000"), "too few"),
    "training text that is too short": (("--set", "groups.0.runs.1.train.context=5000"), "too few for one window"),
    "too little text to calibrate on": (("--set", "groups.0.runs.0.start.tokens=5000"), "too few to calibrate on"),
    "batches that no memory holds": (
        ("--set", "groups.0.runs.1.train.accumulate=1000000000000"),
        "run half/finetune takes about",
    ),
    "a token file that is not there": (("--set", "groups.0.data.train=none.npy"), "none.npy"),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_an_error_before_anything_is_written(
    manifest: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert run(manifest, *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (manifest.parent / "runs").exists()


def test_token_ids_beyond_the_vocabulary(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(manifest.parent / "train.npy", np.full(4000, 64, dtype=np.uint16))
    assert run(manifest) == 2
    assert "holds token id 64 at 0, beyond the vocabulary" in capsys.readouterr().err
    assert not (manifest.parent / "runs").exists()


def test_a_nan_in_the_weights_is_named(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = manifest.parent / "teacher" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    assert run(manifest) == 2
    assert "model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
    assert not list((manifest.parent / "runs").rglob("summary.json"))
    assert not list((manifest.parent / "runs").rglob("step_*"))


def test_blockwise_refuses_to_claim_more_than_it_trains(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(manifest, "--set", "groups.0.runs.1.train.strategy=upcycle.blockwise") == 2
    assert "converted attentions only" in capsys.readouterr().err


def test_blockwise_lowers_the_error_of_the_blocks(manifest: Path) -> None:
    changes = (
        "vars.trains=[attention]",
        "groups.0.runs.1.train.strategy=upcycle.blockwise",
        "groups.0.runs.0.start.refit=false",
        "vars.steps=60",
    )
    assert run(manifest, *(part for change in changes for part in ("--set", change))) == 0
    lines = [json.loads(line) for line in (folder_of(manifest, "finetune") / "metrics.jsonl").read_text().splitlines()]
    first, last = ([line["loss"] for line in lines[at : at + 10]] for at in (0, 50))
    assert sum(last) < 0.95 * sum(first)


def test_a_run_can_be_run_again_from_what_it_wrote(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in the written manifest lead from the run's folder, wherever caramba is called."""
    text = manifest.read_text()
    manifest.write_text(text.replace("train: train.npy", "train: {type: tokens, path: train.npy, part: [0.0, 1.0]}"))
    monkeypatch.chdir(manifest.parent)
    assert caramba("run", "manifest.yml", "--output", "runs", "--run", "convert") == 0
    written = folder_of(manifest, "convert") / "manifest.yml"
    monkeypatch.chdir("/")
    assert caramba("run", written, "--output", manifest.parent / "again", "--run", "convert") == 0
    again = manifest.parent / "again" / "small" / "half" / "convert"
    first, second = weights(folder_of(manifest, "convert")), weights(again)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert caramba("export", again, "-o", manifest.parent / "out") == 0


def test_what_was_refitted_between_attentions_goes_on_into_training(manifest: Path) -> None:
    assert run(manifest, "--set", "groups.0.runs.0.start.refit_mlp=true") == 0
    before, after = weights(folder_of(manifest, "convert")), weights(folder_of(manifest, "finetune"))
    names = [name for name in before if name.endswith("mlp.down_proj")]
    assert names
    again = ("--output", str(manifest.parent / "plain"), "--run", "convert")
    assert caramba("run", manifest, *again) == 0
    plain = weights(manifest.parent / "plain" / "small" / "half" / "convert")
    for name in names:  # the manifest trains attention and norms
        assert not torch.equal(before[name], plain[name])
        assert torch.equal(before[name], after[name])
