"""Runs with low-rank adapters: what they save, how they go on, what follows them, and what their plans say."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch
from caramba_plugins_standard.modes import Train
from caramba_plugins_standard.opening import open_run
from caramba_plugins_standard.training.loop import TrainRunner
from caramba_terminal.reporter import Reporter
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

import caramba
from caramba_core.cli import main
from caramba_core.errors import InputError
from caramba_core.manifest.load import load_manifest
from caramba_core.run import atomic
from caramba_core.run.experiment import Experiment

from .workspace import folder_of, make_workspace, run

TRAINED = 'trains: "${trains}", '


def workspace(folder: Path, settings: str, *, dtype: str = "float32", more: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    manifest = make_workspace(folder)
    text = manifest.read_text().replace(TRAINED, f"{settings}, ").replace("windows: 4", "windows: 2")
    text = text.replace(", trains: [attention, norm]", "")  # the variable, which is not used any more
    manifest.write_text(text.replace("{source: teacher}", f"{{source: teacher, dtype: {dtype}}}") + more)
    return manifest


def saved(manifest: Path, step: int, name: str = "finetune", file: str = "model") -> dict[str, Tensor]:
    return load_file(folder_of(manifest, name) / "checkpoints" / f"step_{step:06d}" / f"{file}.safetensors")


@pytest.mark.parametrize(
    ("settings", "dtype", "still"),
    [
        ("lora: {rank: 2, alpha: 4.0}", "float32", ("norm", "embedder", "bias", "pairs")),
        ("lora: {rank: 2, targets: [mlp]}, trains: [attention], dtype: bfloat16", "bfloat16", ("norm", "embedder")),
        ("lora: {targets: [blocks.1.*]}, activation_checkpointing: full", "float32", ("blocks.0", "blocks.2")),
    ],
)
def test_a_run_saves_the_sums_and_goes_on_bit_for_bit(
    tmp_path: Path, settings: str, dtype: str, still: tuple[str, ...]
) -> None:
    whole = workspace(tmp_path / "whole", settings, dtype=dtype)
    assert run(whole) == 0
    before, after, factors = saved(whole, 0, "convert"), saved(whole, 6), saved(whole, 6, file="lora")
    assert before.keys() == after.keys()
    scale = 2.0 if "alpha" in settings else 1.0
    for name, start in before.items():
        if f"{name}.up" in factors:
            total = start.float() + scale * (factors[f"{name}.up"] @ factors[f"{name}.down"])
            torch.testing.assert_close(after[name], total.to(start.dtype))
            assert not torch.equal(after[name], start)
        else:
            trains = "[attention]" in settings and "attention" in name and "pairs" not in name
            assert torch.equal(after[name].to(start.dtype), start) is not trains, name
    assert not [name for name in factors if any(part in name for part in still)]

    parts = workspace(tmp_path / "parts", settings, dtype=dtype)
    assert run(parts, "--run", "convert") == 0
    while not (folder_of(parts) / "checkpoints" / "step_000002").exists():  # each call ends behind one piece of work
        assert run(parts, "--run", "finetune", "--resume", "--minutes", "1e-9") == 0
    assert run(parts, "--resume") == 0
    for file in ("model", "lora", "optimizer"):
        for name, tensor in saved(whole, 6, file=file).items():
            assert torch.equal(tensor, saved(parts, 6, file=file)[name]), name
    one, other = (json.loads((folder_of(each) / "summary.json").read_text()) for each in (whole, parts))
    assert one["perplexity"] == other["perplexity"]
    assert one["trained_parameters"] == other["trained_parameters"] < one["parameters"] == other["parameters"]


def test_what_follows(tmp_path: Path) -> None:
    """Another run, an evaluation and an export read what it saved as any other checkpoint."""
    next_ = """\
      - {id: next, mode: train, steps: 1, train: {strategy: finetune, trains: [norm], device: cpu, lr: 1.0e-3,
         batch_size: 2, context: 32}}
      - {id: measure, mode: eval, from: finetune}
"""
    manifest = workspace(tmp_path, "lora: {rank: 2}, keep: {last: 9}", more=next_)
    assert run(manifest) == 0
    before, after = saved(manifest, 6), saved(manifest, 1, "next")
    assert all(torch.equal(before[name], tensor) is ("norm" not in name) for name, tensor in after.items())
    trained, measured = (
        json.loads((folder_of(manifest, n) / "summary.json").read_text()) for n in ("finetune", "measure")
    )
    assert measured["perplexity"]["end"] == trained["perplexity"]["end"]  # of the sums, as they were saved
    opened = caramba.open(folder_of(manifest), step=4)
    half, whole = (caramba.open(folder_of(manifest), step=step).logits(list(range(9))) for step in (4, 6))
    assert not torch.equal(half, whole)
    assert opened.perplexity(torch.arange(64).tolist() * 4, context=32, windows=2) > 0
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder_of(manifest)), "-o", str(tmp_path / "out")])
    assert not ended.value.code
    exported = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in exported if "lora" in name or name.endswith((".up", ".down"))]
    assert torch.equal(exported["model.layers.1.mlp.up_proj.weight"], before["model.blocks.1.mlp.up_proj"])


FROM_TEACHER = """\
version: 1
name: small
model: {from: teacher}
groups:
  - name: half
    teacher: {source: teacher, dtype: bfloat16}
    data: {train: train.npy, heldout: heldout.npy}
    eval: {windows: 2, context: 32}
    runs:
      - {id: finetune, mode: train, seed: 3, steps: 6, train: {strategy: finetune, lora: {rank: 2, targets: [mlp]},
         trains: [norm], ema: 0.5, device: cpu, batch_size: 2, context: 32, lr: 1.0e-3, checkpoint_every: 2}}
"""


def opened(manifest: Path, step: int) -> dict[str, Tensor]:
    return dict(open_run(folder_of(manifest), step).tensors())


@pytest.mark.parametrize("settings", ["lora: {rank: 2}", "lora: {alpha: 4.0}, trains: [norm]", FROM_TEACHER])
def test_checkpoints_on_the_way_hold_adapters_alone(tmp_path: Path, settings: str) -> None:
    """What others read of them are the sums nevertheless; those that are asked for, and the last, hold them."""
    manifests = [workspace(tmp_path / name, settings, dtype="bfloat16") for name in ("resumed", "kept")]
    if settings == FROM_TEACHER:
        for manifest in manifests:
            manifest.write_text(settings)
    for manifest, kept in zip(manifests, ("{last: 9}", "{last: 9, every: 2}"), strict=True):
        text = manifest.read_text()
        manifest.write_text(text.replace("checkpoint_every: 2", f"checkpoint_every: 2, keep: {kept}"))
        assert run(manifest) == 0
    alone, kept = manifests
    for step in (2, 4, 6):
        whole = saved(kept, step)
        assert all(torch.equal(tensor, opened(kept, step)[name]) for name, tensor in whole.items())
        found = opened(alone, step)
        assert found.keys() == whole.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor.to(whole[name].dtype), whole[name]), name
        factors = {name.rpartition(".")[0] for name in saved(alone, step, file="lora")}
        assert factors
        assert bool(factors & saved(alone, step).keys()) is (step == 6)
        assert (len(saved(alone, step)) < len(whole) / 2) is (step < 6)


def test_a_run_may_end_where_it_was_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums take the place of the adapters, which stay until they are written."""
    manifest = workspace(tmp_path, "lora: {rank: 2}")
    with monkeypatch.context() as patched:
        patched.setattr(TrainRunner, "_is_due", lambda runner: 1 / (5 - runner.step) and runner.step % 2 == 0)
        assert run(manifest) != 0
    manifest.write_text(manifest.read_text().replace("steps: 6", "steps: 4"))
    before = saved(manifest, 4)
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "_sync_folder", lambda folder: 1 / 0)  # the last thing before it appears
        assert run(manifest, "--resume") != 0
    assert saved(manifest, 4).keys() == before.keys()
    assert run(manifest, "--resume") == 0
    assert len(before) < len(saved(manifest, 4)) / 2
    assert all(torch.equal(tensor, opened(manifest, 4)[name]) for name, tensor in saved(manifest, 4).items())


def test_what_adapters_are_added_to_must_be_there(tmp_path: Path) -> None:
    manifest = workspace(tmp_path, "lora: {rank: 2}, keep: {last: 9}")
    assert run(manifest) == 0
    begun = folder_of(manifest, "convert") / "checkpoints"
    begun.rename(begun.with_name("elsewhere"))
    assert opened(manifest, 6)
    with pytest.raises(InputError, match="which they are added to, is not there any more"):
        opened(manifest, 4)


@pytest.mark.parametrize("pieces", [False, True])
def test_the_best_checkpoint_holds_the_sums(tmp_path: Path, pieces: bool) -> None:
    """Where calls end behind each piece of work, too: then it was saved before it was known to be the best."""
    settings = "lora: {rank: 2, targets: [mlp]}, evaluate_every: 1, patience: 2, clip: null"
    manifest = workspace(tmp_path, f"{settings}, schedule: {{type: linear, warmup: 6}}")  # whose rate is too high then
    manifest.write_text(manifest.read_text().replace("checkpoint_every: 2", "checkpoint_every: 1"))
    more = ("--set", "vars.steps=12", "--set", "vars.lr=0.05")
    assert run(manifest, "--run", "convert", *more) == 0
    for _ in range(60 if pieces else 1):
        minutes = ("--minutes", "1e-9") if pieces else ()
        assert run(manifest, "--run", "finetune", "--resume", *minutes, *more) == 0
        if (folder_of(manifest) / "summary.json").exists():
            break
    best = json.loads((folder_of(manifest) / "summary.json").read_text())["result_step"]
    assert best > 0
    assert saved(manifest, best).keys() == saved(manifest, 0, "convert").keys()


def held(tensors: list[Tensor]) -> int:
    """Bytes of the storages behind tensors, each once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", ["lora: {rank: 2}", "lora: {rank: 3, targets: [mlp]}, trains: [attention, norm]"])
def test_memory_is_what_the_plan_says(tmp_path: Path, settings: str, dtype: str) -> None:
    again = """\
      - {id: again, mode: train, seed: 3, steps: 2, train: {strategy: upcycle.global, lora: {rank: 2}, device: cpu,
         batch_size: 2, context: 32, lr: 1.0e-3, dtype: float32}}
"""
    manifest = workspace(tmp_path, f"{settings}, dtype: {dtype}", dtype=dtype, more=again.replace("float32", dtype))
    loaded = load_manifest(str(manifest))
    experiment = Experiment(loaded, output=tmp_path / "runs", reporter=Reporter(Console(quiet=True)))
    experiment.complete()
    group = loaded.manifest.groups[0]
    plans = {plan.id: plan for plan in experiment.plans["half"].runs}
    assert run(manifest) == 0
    for name in ("finetune", "again"):
        one = next(one for one in group.runs if one.id == name)
        context = experiment.finished_context(group, one)
        assert context is not None
        assert isinstance(one, Train)
        runner = TrainRunner(one, context)
        with experiment.directory(group, one):
            runner._prepare()
        theirs = list(context.teacher.state_dict(keep_vars=True).values())
        known = {tensor.untyped_storage().data_ptr() for tensor in theirs}
        stored = context.student.state_dict().keys()
        buffers = [buffer for key, buffer in context.student.named_buffers() if key in stored]
        mine = [*context.student.parameters(), *buffers]
        shared = [tensor for tensor in mine if tensor.untyped_storage().data_ptr() in known]
        own = [tensor for tensor in mine if tensor.untyped_storage().data_ptr() not in known]
        state = [tensor for each in runner.optimizer.state.values() for tensor in each.values()]
        trains = [parameter for _, parameter in context.trainable()]
        plan = plans[name]
        found = attrs.evolve(
            plan.memory,
            weights=held(own),
            shared=held(shared),
            teacher=held(theirs),
            gradients=held(trains),
            optimizer=held(state),
        )
        assert plan.memory == found, name
        assert plan.trained_parameters == runner.trained
        assert runner.adapters is not None
        runner.adapters.merge()
        assert runner.total == sum(parameter.numel() for parameter in context.student.parameters())
        for key, tensor in saved(manifest, one.steps, name).items():
            assert torch.equal(context.student.state_dict()[key.removeprefix("model.")], tensor)
