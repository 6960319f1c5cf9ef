"""Trackers, traces and what a line of progress says."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from caramba_plugins_standard import tracking
from caramba_plugins_standard.trackers import TensorBoard, Tracker, Trackio, WeightsAndBiases
from caramba_plugins_standard.training.watching import progress_notes
from caramba_terminal.reporter import Reporter
from rich.console import Console

from caramba_core.cli import main
from caramba_core.components import component
from caramba_core.errors import PluginError
from caramba_core.manifest.load import load_manifest
from caramba_core.run.experiment import Experiment
from tests.plugins.test_hooks_in_runs import MANIFEST

FOLDER = "runs/tiny/main/first"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 60, 700).astype(np.uint16))
    return tmp_path


def written(folder: Path, settings: str) -> str:
    (folder / "m.yml").write_text(MANIFEST.replace("evaluate_every: 3", f"evaluate_every: 3, {settings}"))
    return str(folder / "m.yml")


def run(folder: Path, settings: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["run", written(folder, settings), "--output", str(folder / "runs"), *arguments])
    return int(ended.value.code or 0)


class Noting:
    """Keeps what it is given; fails at its third step where it is told to."""

    made: ClassVar[list[Noting]] = []

    def __init__(self, config: Made, context: Any) -> None:
        self.fails = config.fails
        self.said: list[Any] = []
        Noting.made.append(self)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self.fails and step == 3:
            raise OSError("the network is gone")
        self.said.append((step, sorted(values)))

    def flush(self) -> None:
        self.said.append("flushed")

    def end(self, summary: Mapping[str, Any] | None) -> None:
        self.said.append(None if summary is None else summary["run"])


@component
class Made(Tracker):
    """One of this test."""

    builds: ClassVar[str] = f"{__name__}:Noting"

    fails: bool = False


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> type[Noting]:
    """What the trackers of a run become, whatever they are called."""
    Noting.made.clear()
    fails = iter((True, False))
    for kind in (TensorBoard, Trackio):
        monkeypatch.setattr(kind, "library", "")
        monkeypatch.setattr(kind, "start", lambda self, context: Noting(Made(fails=next(fails)), context))
    return Noting


def test_trackers_see_a_run_and_one_that_fails_is_left_out(
    folder: Path, made: type[Noting], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder, "trackers: [tensorboard, trackio]") == 0
    assert "warning: TensorBoard takes no more numbers: OSError: the network is gone" in capsys.readouterr().out
    failed, sound = (one.said for one in made.made)
    steps = ["gradient_norm", "loss", "lr", "memory_bytes", "mfu", "tokens", "tokens_per_second"]
    assert failed == [(0, ["perplexity_start"]), (1, steps), (2, steps)]
    assert sound == [
        (0, ["perplexity_start"]),
        *((step, steps) for step in (1, 2, 3)),
        (3, ["perplexity"]),
        *((step, steps) for step in (4, 5, 6)),
        (6, ["perplexity"]),
        "flushed",
        (6, ["perplexity_end"]),
        "first",
    ]
    assert not tracking._open


def test_trackers_have_no_part_in_a_result(folder: Path, made: type[Noting]) -> None:
    """A run that was stopped closes them, and goes on with others."""
    assert run(folder, "trackers: [tensorboard]", "--minutes", "0") == 0
    assert len(tracking._open) == 1
    assert run(folder, "trackers: []", "--resume") == 0
    assert not tracking._open
    assert made.made[0].said[-1] is None


def test_a_library_that_is_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TensorBoard, "library", "no_such_library")
    assert run(folder, "trackers: [tensorboard]", "--dry-run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the tracker TensorBoard needs the library no_such_library, which is not installed" in said
    assert "pip install 'caramba-plugins-standard[no_such_library]'" in said
    for tracker in (Made(), Tracker()):
        tracker.require()
    with pytest.raises(PluginError):
        TensorBoard().require()


@pytest.mark.parametrize("kind", [TensorBoard, Trackio, WeightsAndBiases])
def test_extras_are_called_as_libraries(kind: type[Tracker]) -> None:
    project = (Path(__file__).parents[2] / "plugins/caramba_plugins_standard/pyproject.toml").read_text()
    assert f'\n{kind.library} = ["{kind.library}>=' in project


# ------------------------------------------------------------------------------------------------ the libraries


def test_tensorboard(folder: Path) -> None:
    """A run that does steps again replaces them."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    settings = "checkpoint_every: 2, trackers: [tensorboard]"
    assert run(folder, settings) == 0
    assert run(folder, settings, "--resume", "--resume-from", "4", "--set", "groups.0.runs.0.steps=8") == 0
    found = events.EventAccumulator(str(folder / FOLDER / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [event.step for event in found.Scalars("perplexity")] == [3, 6]


def test_weights_and_biases_offline(folder: Path) -> None:
    wandb = pytest.importorskip("wandb")
    assert run(folder, "trackers: [{type: wandb, mode: offline}]") == 0
    wandb.teardown()  # its own process writes the rest
    [log] = (folder / FOLDER / "wandb").glob("offline-run-*/run-*.wandb")
    identity = json.loads((folder / FOLDER / "state.json").read_text())["identity"]
    assert identity in log.name
    assert b"gradient_norm" in log.read_bytes()


def test_trackio(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(folder / "trackio"))
    pytest.importorskip("trackio")
    utils = importlib.import_module("trackio.utils")
    monkeypatch.setattr(utils, "TRACKIO_DIR", folder / "trackio")
    assert run(folder, "trackers: [trackio]") == 0
    assert "Trackio" not in capsys.readouterr().out, "it prints to stderr"
    [database] = (folder / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        found = dict(connection.execute("select step, cast(metrics as text) from metrics"))
    assert [step for step in sorted(found) if '"loss"' in found[step] or '"perplexity' in found[step]] == [*range(7)]


# ------------------------------------------------------------------------------------------------ traces and lines


def test_a_trace_of_some_steps(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "profile: {steps: [5, 90]}") == 0
    path = folder / FOLDER / "trace_000005_000006.json.gz"
    assert f"trace of steps 5 to 6: {path}" in capsys.readouterr().out
    names = {event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert "aten::mm" in names or "aten::addmm" in names
    assert not list((folder / FOLDER).glob(".*"))
    assert run(folder, "profile: {steps: [5, 4]}", "--again") == 2
    assert "[5, 4] are no steps" in capsys.readouterr().err


def test_a_line_says_what_there_is_room_for(folder: Path) -> None:
    said = progress_notes(
        {"loss": 3.14159, "gradient_norm": 0.5}, 3e-4, {"tokens_per_second": 1.0, "mfu": 0.431, "memory_bytes": 2.0**30}
    )
    assert said == ["loss 3.1416", "MFU 43%", "norm 0.5", "lr 0.0003", "1 GiB"]
    assert progress_notes({}, 0.1, {}) == ["lr 0.1"]
    for width, shown in ((80, "loss 3.1416, MFU 43%"), (120, "loss 3.1416, MFU 43%, norm 0.5")):
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=width, highlight=False, color_system=None)
        with Reporter(console).bar("main/train", 100) as bar:
            bar.advance(50)
            bar.note(*said)
            bar.advance(50)
        last = out.getvalue().rpartition("\r")[2].partition("\n")[0]
        assert shown in last
        assert "1 GiB" not in last
        assert len(last.rstrip()) <= width


def test_a_run_tells_them(folder: Path) -> None:
    out = io.StringIO()
    reporter = Reporter(Console(file=out, highlight=False, width=200))
    Experiment(load_manifest(written(folder, "clip: 1.0")), output=folder / "runs", reporter=reporter).complete()
    assert "loss " in out.getvalue()
    assert ", norm " in out.getvalue()
    assert ", lr " in out.getvalue()
