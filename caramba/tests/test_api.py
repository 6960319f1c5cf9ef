"""The Python API on runs of the real classes: load, plan, build, run, open, and the table of runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch

import caramba
from caramba_core.cli import main
from caramba_core.nn.language_model import LanguageModel

MANIFEST = """\
version: 1
name: tiny
vars: {steps: 4, width: 16}
model:
  type: transformer
  tied_embeddings: true
  embedder: {type: token, vocab_size: 50, d_model: "${width}"}
  topology:
    type: stacked
    layers:
      - type: nested
        name: blocks
        repeat: 2
        layers:
          - {type: residual, layers: [{type: rms_norm}, {type: mha, n_heads: 2, head_dim: 8}]}
          - {type: residual, layers: [{type: rms_norm}, {type: swiglu, d_ff: 32}]}
      - {type: rms_norm}
groups:
  - name: main
    data: {train: tokens.npy, heldout: tokens.npy}
    eval: {context: 16, windows: 3}
    runs:
      - id: first
        mode: train
        seed: 1
        steps: ${steps}
        train: {strategy: pretrain, lr: 1.0e-2, batch_size: 2, context: 16, checkpoint_every: 2, device: cpu}
      - {id: again, mode: eval, device: cpu}
  - {name: wide, extends: main, vars: {width: 32}}
"""


CONVERSION = """\
version: 1
name: conversion
model:
  from: teacher
  replace:
    attention: {type: dba, sem_dim: 4, geo_dim: 8, v_dim: 10, o_bias: true}
groups:
  - name: half
    teacher: {source: teacher}
    data: {train: tokens.npy, heldout: tokens.npy}
    eval: {windows: 4, context: 32}
    runs:
      - {id: convert, mode: convert, device: cpu, start: {tokens: 256, max_context: 32, batch_size: 2}}
      - id: finetune
        mode: train
        steps: 2
        train: {strategy: upcycle.global, trains: [attention], batch_size: 2, context: 32, lr: 1.0e-3, device: cpu}
"""
WORDS = [*(f"w{index}" for index in range(48)), "<|endoftext|>", "?"]


def write_tokens(folder: Path) -> None:
    np.save(folder / "tokens.npy", (np.cumsum(np.arange(300) % 7) % 48).astype(np.uint16))


def write_teacher(folder: Path) -> None:
    """A Hugging Face folder with a tokenizer of words between blanks: a run of grouped-query attention, exported."""
    gqa = "{type: gqa, n_heads: 2, n_kv_heads: 2, head_dim: 8, rope: {theta: 100.0}}"
    (folder / "teacher.yml").write_text(MANIFEST.replace("{type: mha, n_heads: 2, head_dim: 8}", gqa))
    (run,) = caramba.load(folder / "teacher.yml").run("main", "first", output=folder / "teachers")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run.path), "-o", str(folder / "teacher")])
    assert not ended.value.code
    model = tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "teacher" / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest, its tokens, and the runs of its first group."""
    folder = tmp_path_factory.mktemp("api")
    write_tokens(folder)
    (folder / "tiny.yml").write_text(MANIFEST)
    caramba.load(folder / "tiny.yml").run("main", output=folder / "runs")
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small conversion whose teacher has a tokenizer, and its runs."""
    folder = tmp_path_factory.mktemp("converted")
    write_tokens(folder)
    write_teacher(folder)
    (folder / "conversion.yml").write_text(CONVERSION)
    caramba.load(folder / "conversion.yml").run(output=folder / "runs")
    return folder


def text_of(folder: Path) -> str:
    return " ".join(WORDS[int(id_)] for id_ in np.load(folder / "tokens.npy"))


# ------------------------------------------------------------------------------------------------ importing


def test_importing_is_light() -> None:
    heavy = ("torch", "numpy", "yaml", "rich", "attrs")
    code = f"import caramba, sys; print(caramba.CarambaError.__name__, [n for n in {heavy} if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "CarambaError []\n"


def test_loading_and_planning_need_no_torch(folder: Path) -> None:
    code = (
        f"import caramba, sys; print(caramba.load({str(folder / 'tiny.yml')!r}).plan('main'));"
        f"print(caramba.runs({str(folder)!r})); assert not {{'torch', 'numpy'}} & sys.modules.keys()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mha" in ran.stdout


def test_public_names() -> None:
    assert all(hasattr(caramba, name) for name in caramba.__all__)
    assert set(dir(caramba)) == set(caramba.__all__)
    assert caramba.Experiment.__doc__
    with pytest.raises(AttributeError):
        _ = caramba.modell  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------ an experiment


def test_an_experiment(folder: Path) -> None:
    experiment = caramba.load(folder / "tiny.yml", set={"vars.steps": 3})
    assert isinstance(experiment, caramba.Experiment)
    assert experiment.name == "tiny"
    assert experiment.groups == ("main", "wide")
    assert experiment.manifest["groups"][0]["runs"][0]["steps"] == 3
    assert repr(experiment) == "<caramba.Experiment tiny: main (first, again); wide (first, again)>"
    assert caramba.load(folder / "tiny.yml", set=["vars.steps=3"]).manifest == experiment.manifest
    assert caramba.load("smollm2_135m_dba").name == "smollm2_135m_dba"


def test_values_that_are_set(folder: Path) -> None:
    """Python's values arrive as what they are."""
    values: dict[str, object] = {
        "steps": 3,
        "verify": None,
        "train.lr": 1e-05,
        "train.trains": ["attention", "norm"],
        "train.deterministic": True,
        "train.optimizer": {"type": "adamw", "weight_decay": 0.5},
    }
    experiment = caramba.load(folder / "tiny.yml", set={f"groups.main.runs.first.{k}": v for k, v in values.items()})
    run = experiment.manifest["groups"][0]["runs"][0]
    for path, value in values.items():
        found = run
        for part in path.split("."):
            found = found[part]
        assert found == value and type(found) is type(value)
    set_ = {"groups.main.data.train": folder / "tokens.npy"}
    assert caramba.load(folder / "tiny.yml", set=set_).manifest["groups"][0]["data"]["train"] == str(
        folder / "tokens.npy"
    )


def test_a_wrong_manifest(folder: Path) -> None:
    with pytest.raises(caramba.ManifestError, match="did you mean 'steps'"):
        caramba.load(folder / "tiny.yml", set={"vars.stepz": 3})
    with pytest.raises(caramba.CarambaError, match="there is no preset"):
        caramba.load("nothing_of_this_name")


def test_plans(folder: Path) -> None:
    plans = caramba.load(folder / "tiny.yml").plan()
    assert [plan.group for plan in plans] == ["main", "wide"]
    assert plans[0].model.total.parameters < plans[1].model.total.parameters
    assert "tiny/main" in str(plans) and "tiny/wide" in str(plans)
    assert "<pre" in plans._repr_html_()
    (wide,) = caramba.load(folder / "tiny.yml").plan("wide", context=64)
    assert wide.model.context == 64
    with pytest.raises(caramba.InputError, match="has no group 'wyde'"):
        caramba.load(folder / "tiny.yml").plan("wyde")


def test_a_picture(folder: Path, tmp_path: Path) -> None:
    picture = caramba.load(folder / "tiny.yml").graph("wide")
    assert picture._repr_svg_().startswith("<svg")
    picture.save(tmp_path / "model.mmd")
    assert "mha" in (tmp_path / "model.mmd").read_text()
    with pytest.raises(caramba.InputError, match="several groups"):
        caramba.load(folder / "tiny.yml").graph()


def test_building(folder: Path) -> None:
    experiment = caramba.load(folder / "tiny.yml")
    model = experiment.build("wide", device="cpu", seed=3)
    assert isinstance(model, torch.nn.Module) and isinstance(model, LanguageModel)
    assert model(torch.tensor([[1, 2, 3]])).shape == (1, 3, 50)
    assert sum(p.numel() for p in model.parameters()) == experiment.plan("wide")[0].model.total.parameters
    same, other = (experiment.build("wide", device="cpu", seed=seed) for seed in (3, 4))
    tokens = torch.tensor([[5, 6]])
    assert torch.equal(model(tokens), same(tokens))
    assert not torch.equal(model(tokens), other(tokens))
    with pytest.raises(caramba.InputError, match="several groups") as caught:
        experiment.build()
    assert caught.value.expected == "one of: main, wide"


def test_running_again_and_going_on(folder: Path, tmp_path: Path) -> None:
    experiment = caramba.load(folder / "tiny.yml")
    for _ in range(99):  # windows of the start are measured first, a batch a call
        (stopped,) = experiment.run("main", "first", output=tmp_path, minutes=0)
        if stopped.step:
            break
    assert (stopped.status, stopped.step, stopped.perplexity) == ("interrupted", 1, None)
    with pytest.raises(caramba.InputError, match="holds a run that stopped at step 1"):
        experiment.run("main", output=tmp_path)
    with pytest.raises(caramba.InputError, match="has not finished: it is interrupted at step 1") as caught:
        caramba.open(stopped.path)
    assert "step=1" in (caught.value.hint or "")
    assert caramba.open(stopped.path, step=1, device="cpu").summary is None
    done = experiment.run("main", "first", output=tmp_path, resume=True)
    assert [run.status for run in done] == ["done"]
    whole = caramba.open(folder / "runs/tiny/main/first", device="cpu").model.state_dict()
    assert all(torch.equal(whole[k], v) for k, v in caramba.open(done[0].path).model.cpu().state_dict().items())
    assert experiment.run("main", "first", output=tmp_path).to_dicts() == done.to_dicts()


# ------------------------------------------------------------------------------------------------ an opened run


def test_an_opened_run(folder: Path) -> None:
    run = caramba.open(folder / "runs/tiny/main/first", device="cpu")
    assert isinstance(run, caramba.Model)
    assert isinstance(run.model, LanguageModel) and not run.model.training
    assert run.summary is not None
    assert run.summary["run"] == "first"
    assert run.manifest["groups"][0]["name"] == "main"
    assert (run.tokenizer, run.teacher) == (None, None)
    assert "parameters on cpu" in repr(run)
    assert run.perplexity() == run.summary["perplexity"]["end"]
    measured = run.measure()
    assert measured.standard_error == run.summary["perplexity_standard_error"]["end"]
    assert measured.tokens == run.summary["scored_tokens"]


def test_token_ids(folder: Path) -> None:
    run = caramba.open(folder / "runs/tiny/main/first", device="cpu")
    ids = np.load(folder / "tokens.npy")
    assert run.perplexity(ids, windows=3) == run.perplexity()
    assert run.perplexity(ids.tolist()[:48]) == run.perplexity()  # all whole windows of the run's context
    assert run.perplexity(torch.tensor(ids[:10].astype(np.int64))) > 1  # shorter than the run's context: one window
    assert run.perplexity(ids, windows=3, cache="int8") != run.perplexity()
    assert run.measure(ids, context=8, windows=5, batch_size=2).nll.shape == (5, 7)
    logits = run.logits(ids[:5])
    assert (logits.shape, logits.dtype) == ((5, 50), torch.float32)
    torch.testing.assert_close(run.logits(torch.tensor([[1, 2], [3, 4]]))[0], run.logits([1, 2]))
    out = run.generate([1, 2, 3], 4)
    assert out[:3] == [1, 2, 3] and len(out) == 7
    assert out[3] == int(run.logits([1, 2, 3])[-1].argmax())
    assert out == run.generate(np.array([1, 2, 3]), max_new_tokens=4)
    drawn = run.generate([1, 2, 3], 40, temperature=2.0, top_k=9, seed=5)
    assert drawn == run.generate([1, 2, 3], 40, temperature=2.0, top_k=9, seed=5) != run.generate([1, 2, 3], 40)
    assert drawn != run.generate([1, 2, 3], 40, temperature=2.0, top_k=9, seed=6)
    assert run.generate([1, 2, 3], 40, temperature=2.0, top_k=1) == run.generate([1, 2, 3], 40)


def test_tokens_that_cannot_be(folder: Path) -> None:
    run = caramba.open(folder / "runs/tiny/main/first", device="cpu")
    for wrong, message in (
        ([], "there are no tokens"),
        ([50], "token id 50 is outside the model's vocabulary"),
        ([3, -1], "token id -1 is outside"),
        ([0.5], "holds no token ids"),
        ([[[1]]], "holds no token ids"),
    ):
        with pytest.raises(caramba.InputError, match=message):
            run.logits(wrong)  # type: ignore[arg-type]
    with pytest.raises(caramba.InputError, match="has no tokenizer to read a text with"):
        run.generate("text")
    with pytest.raises(caramba.InputError, match="too few to measure on"):
        run.perplexity([1])
    with pytest.raises(caramba.InputError, match="too few to measure on"):
        run.perplexity([1, 2, 3], context=4)
    with pytest.raises(caramba.InputError, match="context: 1 is below 2"):
        run.perplexity([1, 2, 3], context=1)
    with pytest.raises(caramba.InputError, match="there is no cache 'int2'"):
        run.perplexity(cache="int2")
    with pytest.raises(caramba.InputError, match="max_new_tokens is -1"):
        run.generate([1], -1)
    with pytest.raises(caramba.InputError, match=r"top_p: 1\.5 is above 1"):
        run.generate([1], top_p=1.5)
    with pytest.raises(caramba.InputError, match="temperature: nan is not a finite number"):
        run.generate([1], temperature=float("nan"))


def test_a_conversion_with_its_teacher_and_tokenizer(converted: Path) -> None:
    run = caramba.open(converted / "runs/conversion/half/finetune", device="cpu")
    assert run.summary is not None and run.tokenizer is not None and run.teacher is not None
    assert run.perplexity() == run.summary["perplexity"]["end"]
    text = text_of(converted)
    assert run.perplexity(text, windows=4) == run.perplexity()
    assert run.teacher.perplexity(text, context=32, windows=4) == run.summary["perplexity"]["teacher"]
    assert run.teacher.summary is None
    assert run.teacher is run.teacher
    written = run.generate("w1 w2 w3", max_new_tokens=5)
    assert written.startswith("w1 w2 w3")
    assert run.tokenizer.encode(written) == run.generate([1, 2, 3], 5)
    assert torch.equal(run.logits("w7 w8"), run.logits([7, 8]))
    convert = caramba.open(converted / "runs/conversion/half/convert", device="cpu")
    assert convert.summary is not None
    assert convert.perplexity() == convert.summary["perplexity"]["end"]


def test_a_pretrained_checkpoint(converted: Path) -> None:
    teacher = caramba.open(converted / "teacher", device="cpu")
    assert (teacher.summary, teacher.teacher) == (None, None)
    assert teacher.manifest["model"]["type"] == "transformer"
    assert teacher.generate("w1 w2", 3).startswith("w1 w2")
    run = caramba.open(converted / "runs/conversion/half/finetune", device="cpu")
    assert run.teacher is not None
    assert torch.equal(teacher.logits([4, 5]), run.teacher.logits([4, 5]))
    half = caramba.open(converted / "teacher", device="cpu", dtype="bfloat16")
    assert half.model.head_weight.dtype == torch.bfloat16
    assert half.logits([4, 5]).dtype == torch.float32
    with pytest.raises(caramba.InputError, match="no held-out tokens of its own"):
        teacher.perplexity()
    with pytest.raises(caramba.InputError, match="there is no type 'int8'"):
        caramba.open(converted / "teacher", dtype="int8")


def test_a_teacher_that_is_gone(converted: Path, tmp_path: Path) -> None:
    """Its run still opens: weights are its own, ids need no tokenizer."""
    run_folder = tmp_path / "runs/conversion/half/convert"
    shutil.copytree(converted / "runs/conversion/half/convert", run_folder)
    run = caramba.open(run_folder, device="cpu")
    assert run.summary is not None
    assert run.perplexity(np.load(converted / "tokens.npy"), windows=4) == run.summary["perplexity"]["end"]
    with pytest.raises(caramba.InputError, match="does not exist"):
        run.generate("w1")


def test_a_run_in_bfloat16_is_measured_in_bfloat16(folder: Path, tmp_path: Path) -> None:
    experiment = caramba.load(folder / "tiny.yml", set={"groups.main.runs.first.train.dtype": "bfloat16"})
    (info,) = experiment.run("main", "first", output=tmp_path)
    run = caramba.open(info.path, device="cpu")
    assert run.perplexity() == info.perplexity
    exact = caramba.open(info.path, device="cpu", dtype="float32")
    assert exact.perplexity() != info.perplexity
    assert exact.perplexity() == pytest.approx(info.perplexity, rel=1e-2)


# ------------------------------------------------------------------------------------------------ what cannot be opened


def test_what_is_no_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(caramba.InputError, match="does not exist"):
        caramba.open(tmp_path / "nothing")
    with pytest.raises(caramba.InputError, match="is not a run's folder, but holds some") as caught:
        caramba.open(folder / "runs" / "tiny")
    assert str(folder / "runs/tiny/main/first") in (caught.value.expected or "")
    with pytest.raises(caramba.InputError, match=r"not a run's folder, and cannot be .* the folder is empty"):
        caramba.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(caramba.InputError, match=r"cannot be opened as a checkpoint: .*config\.json"):
        caramba.open(tmp_path)
    with pytest.raises(caramba.InputError, match="holds no checkpoint") as caught:
        caramba.open(folder / "runs/tiny/main/again")
    assert "open the run that they continue" in (caught.value.hint or "")
    with pytest.raises(caramba.InputError, match="no checkpoint of step 3") as caught:
        caramba.open(folder / "runs/tiny/main/first", step=3)
    assert caught.value.expected == "one of: 2, 4"
    with pytest.raises(caramba.InputError, match="device"):
        caramba.open(folder / "runs/tiny/main/first", device="tpu")


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_of_runs(folder: Path) -> None:
    table = caramba.runs(folder / "runs")
    assert isinstance(table, caramba.Runs)
    assert [run.run for run in table] == ["again", "first"]
    first = table[1]
    summary = json.loads((folder / "runs/tiny/main/first/summary.json").read_text())
    assert (first.name, first.group, first.status, first.step) == ("tiny", "main", "done", 4)
    assert (first.perplexity, first.ratio) == (summary["perplexity"]["end"], None)
    assert first.cache_bytes_per_token == summary["cache_bytes_per_token"]["student"]
    assert first.path == folder / "runs/tiny/main/first"
    assert table.to_dicts()[1]["path"] == str(first.path)
    assert json.loads(json.dumps(table.to_dicts())) == table.to_dicts()
    assert "perplexity" in str(table) and "first" in str(table)
    assert table._repr_html_().count("<tr>") == 3
    assert caramba.runs(first.path).to_dicts() == table[1:].to_dicts()
    assert caramba.runs(folder / "runs" / "tiny" / "main").to_dicts() == table.to_dicts()


def test_ratios_to_the_teacher(converted: Path) -> None:
    table = caramba.runs(converted / "runs")
    assert [run.run for run in table] == ["convert", "finetune"]
    assert all(run.ratio is not None for run in table)


def test_a_damaged_run_does_not_hide_the_others(folder: Path, tmp_path: Path) -> None:
    caramba.load(folder / "tiny.yml").run("main", output=tmp_path)
    (tmp_path / "tiny/main/again/state.json").write_text("{")
    assert [run.status for run in caramba.runs(tmp_path)] == ["damaged", "done"]


def test_no_runs(tmp_path: Path) -> None:
    assert str(caramba.runs(tmp_path)) == "no runs"
    with pytest.raises(caramba.InputError, match="there is no folder"):
        caramba.runs(tmp_path / "runs")
