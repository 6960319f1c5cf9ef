"""What ``caramba run`` checks before it imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from caramba_core.errors import InputError, ManifestError, VerificationFailed
from caramba_core.manifest.load import load_manifest
from caramba_core.run.experiment import Experiment

from .workspace import make_workspace

PROGRAM = """
import json, os, sys
from caramba_core.cli import main
from caramba_core.manifest.load import load_manifest
from caramba_core.run.experiment import Experiment
good = Experiment(load_manifest("manifest.yml"))
good.check(good.unfinished())
found = []
for index, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        with open(f"said_{index}", "wb") as file:
            os.dup2(file.fileno(), 2)
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code or 0
        heavy = {"torch", "numpy", "safetensors"} & set(sys.modules)
        print("heavy:", *heavy, file=sys.stderr, flush=True)
        os._exit(code)
    found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(found))
"""
"""Commands, each by a fork of an interpreter that has imported what a good manifest needs before torch."""

BAD = {
    "a manifest that is not there": (["nowhere.yml"], "nowhere.yml: error: there is no such file"),
    "a misspelt key": (["manifest.yml", "--set", "groups.0.evals={}"], "unknown key 'evals'"),
    "sizes that do not fit": (["manifest.yml", "--set", "vars.geo=7"], "geo_dim"),
    "a pattern that chooses nothing": (
        ["manifest.yml", "--set", "groups.0.runs.1.train.trains=[atention]"],
        "'atention' matches no node of the model, did you mean 'attention'?",
    ),
    "a pattern of nodes to compute again that chooses nothing": (
        ["manifest.yml", "--set", "groups.0.runs.1.train.activation_checkpointing=[mlp, atention]"],
        "activation_checkpointing.1: 'atention' matches no node of the model, did you mean 'attention'?",
    ),
    "a pattern of adapters that chooses nothing": (
        ["manifest.yml", "--set", "groups.0.runs.1.train.lora={targets: [atention]}"],
        "train.lora.targets.0: 'atention' matches no node of the model, did you mean 'attention'?",
    ),
    "a pattern of adapters of what trains as a whole": (
        ["manifest.yml", "--set", "groups.0.runs.1.train.lora={targets: [mlp, attention]}"],
        "train.lora.targets.1: 'attention' names no matrix that gets an adapter",
    ),
    "a pattern of adapters of nodes without matrices": (
        ["manifest.yml", "--set", "groups.0.runs.1.train.lora={targets: [blocks.*.norm_2]}"],
        "lora.targets.0: 'blocks.*.norm_2' names no matrix",
    ),
    "a pattern of nodes that keep nothing": (
        ["manifest.yml", "--set", "groups.0.runs.1.train.activation_checkpointing=[mlp, head]"],
        "activation_checkpointing.1: of 'head' nothing is kept that could be computed again",
    ),
    "hidden states of a block that is not there": (
        ["manifest.yml", "--set", "groups.0.runs.1.train.strategy={type: upcycle.global, hidden: {blocks: [0, 3]}}"],
        "train.strategy.hidden.blocks: the model has 3 blocks, counted from 0",
    ),
    "more of the teacher's probabilities than there are": (
        ["manifest.yml", "--set", "groups.0.runs.1.train.strategy={type: upcycle.global, keep_logits: {top: 64}}"],
        "keep_logits.top: 64 of 64 tokens leaves no rest",
    ),
    "adapters of one node at a time": (
        [
            "manifest.yml",
            "--set",
            "groups.0.runs.1.train.lora={}",
            "--set",
            "groups.0.runs.1.train.strategy=upcycle.blockwise",
        ],
        "train.lora: this strategy trains one node at a time, as a whole",
    ),
    "a group that is not there": (["manifest.yml", "--group", "full"], "there is no group 'full'\n  expected: half"),
    "a run that is not there": (["manifest.yml", "--run", "x"], "there is no run 'x'\n  expected: convert, finetune"),
    "a run whose parent has no result": (
        ["manifest.yml", "--run", "finetune"],
        "half/finetune continues from convert, which has no result yet",
    ),
    "a missing teacher": (["manifest.yml", "--set", "groups.0.teacher.source=nowhere"], "nowhere"),
    "missing data": (["manifest.yml", "--set", "groups.0.data.train=none.npy"], "none.npy does not exist"),
    "a plugin that is not installed": (["manifest.yml", "--set", "requires=[caramba-plugin-x]"], "caramba-plugin-x"),
    "a manifest without groups": (["bare.yml"], "has no groups"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("request")
    text = make_workspace(folder).read_text()
    (folder / "bare.yml").write_text(text.split("groups:")[0])
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, tuple[int, str]]:
    """What each bad request gave: its exit code, and what it wrote to stderr."""
    commands = json.dumps([["run", *arguments] for arguments, _ in BAD.values()])
    program = [sys.executable, "-c", PROGRAM, commands]
    codes = json.loads(subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True).stdout)
    said = [(folder / f"said_{index}").read_text() for index in range(len(BAD))]
    return dict(zip(BAD, zip(codes, said, strict=True), strict=True))


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_before_torch_is_imported(
    folder: Path, ran: dict[str, tuple[int, str]], name: str
) -> None:
    code, said = ran[name]
    assert code == 2, said
    assert BAD[name][1] in said
    assert said.splitlines()[-1] == "heavy:"
    assert not (folder / "runs").exists()


def test_missing_data_is_shown_where_it_is_named(folder: Path) -> None:
    text = (folder / "manifest.yml").read_text()
    (folder / "missing.yml").write_text(text.replace("heldout: heldout.npy", "heldout: lost.npy"))
    experiment = Experiment(load_manifest(str(folder / "missing.yml")))
    with pytest.raises(ManifestError, match=r"missing\.yml:25:39: error: .*lost\.npy does not exist"):
        experiment.check(experiment.unfinished())


def test_patterns_are_shown_where_they_are_written(folder: Path) -> None:
    text = (folder / "manifest.yml").read_text()
    (folder / "pattern.yml").write_text(text.replace("trains: [attention, norm]}", "trains: [attention, mpl]}"))
    experiment = Experiment(load_manifest(str(folder / "pattern.yml")))
    with pytest.raises(ManifestError, match=r"pattern\.yml:3:\d+: error: .*'mpl' matches no node.*did you mean 'mlp'"):
        experiment.check(experiment.unfinished())


def test_results_are_held_against_verify_again(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = "groups.0.runs.0.verify={perplexity_ratio_at_most: 1.1}"
    experiment = Experiment(load_manifest(str(folder / "manifest.yml"), overrides=[wanted]), output=tmp_path)
    experiment.verify()  # nothing has a result yet
    found = {"perplexity_ratio": {"start": 1.0, "end": 1.05}}
    monkeypatch.setattr("caramba_core.run.directory.RunDirectory.summary", lambda directory: found)
    experiment.verify()
    found["perplexity_ratio"]["end"] = 1.2
    with pytest.raises(VerificationFailed, match=r"perplexity_ratio at most 1\.1 \(found 1\.2\)"):
        experiment.verify()


def test_the_run_that_is_continued(folder: Path) -> None:
    text = (folder / "manifest.yml").read_text()
    other = "  - {name: other, extends: half, runs: [{id: measured, mode: eval, from: half/finetune}]}\n"
    (folder / "two.yml").write_text(text + other)
    experiment = Experiment(load_manifest(str(folder / "two.yml")))
    half, second = experiment.groups
    convert, finetune = half.runs
    assert experiment.manifest.parent_of(half, convert) is None
    assert experiment.manifest.parent_of(half, finetune) == (half, convert)
    assert experiment.manifest.parent_of(second, second.runs[0]) == (half, finetune)
    experiment.check(experiment.unfinished())
    alone = Experiment(load_manifest(str(folder / "two.yml")), group="other")
    with pytest.raises(InputError, match=r"other/measured continues from half/finetune(.|\n)*--group half --run finet"):
        alone.check(alone.unfinished())
    changed = Experiment(load_manifest(str(folder / "two.yml"), overrides=["vars.lr=2e-3"]))
    ours, theirs = (one.document(one.groups[1], one.groups[1].runs[0]) for one in (experiment, changed))
    assert ours != theirs


def test_a_choice_of_nothing(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no group ''"):
        Experiment(load_manifest(str(folder / "manifest.yml")), group="")
