"""The kit's checks of strategies, hook modules and loaders: sound ones pass, each fault is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import attrs
import pytest
import torch
from caramba_plugins_standard.loading import FileSpan, Stored
from caramba_plugins_standard.pretrain import Pretrain
from caramba_plugins_standard.training import StepResult, Strategy
from caramba_plugins_standard.training.batch import Batch
from caramba_plugins_testing import CheckFailed
from caramba_plugins_testing.hooks import play_failure, play_run
from caramba_plugins_testing.loaders import check_loader
from caramba_plugins_testing.strategies import check_strategy
from caramba_plugins_upcycle.strategies import Global
from safetensors.torch import load_file, save_file

from caramba_core.components import component, option
from caramba_core.errors import InputError, PluginError
from caramba_core.hookspecs import Section, hookimpl
from caramba_core.run.context import RunContext

# ------------------------------------------------------------------------------------------------------ strategies


@component
class Made(Strategy):
    """Next-token training with the fault of its name."""

    builds: ClassVar[str] = f"{__name__}:MadeRunner"

    fault: str = option(default="", help="what is wrong with it")


class MadeRunner:
    def __init__(self, config: Made, context: RunContext) -> None:
        self.fault = config.fault
        self.context = context

    def prepare(self) -> None:
        self.student = self.context.student
        if self.fault == "freezes":
            self.frozen = self.student.get_submodule("attention")

    def step(self, batch: Batch) -> StepResult:
        if self.fault == "starts over":
            self.student.zero_grad()
        logits = self.student(batch.inputs)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        if self.fault == "is not finite":
            loss = loss / 0
        (-loss if self.fault == "climbs" else loss).backward()
        if self.fault == "moves weights":
            with torch.no_grad():
                next(self.student.parameters()).add_(1.0)
        if self.fault == "freezes":
            self.frozen.zero_grad()
        return StepResult(loss=loss if self.fault == "keeps the graph" else loss.detach())


@pytest.mark.parametrize("strategy", [Made(), Pretrain(), Global()], ids=lambda strategy: type(strategy).__name__)
def test_sound_strategies_pass(strategy: Strategy, tmp_path: Path) -> None:
    check_strategy(strategy, tmp_path)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("starts over", "a second step does not add to the gradient"),
        ("climbs", "forty steps on one batch take the loss"),
        ("is not finite", "loss is inf"),
        ("moves weights", "a step moves attention.q_proj itself"),
        ("keeps the graph", "loss is not a detached single number"),
        ("freezes", "attention.q_proj trains, and a step gives it no gradient"),
    ],
)
def test_fault_of_a_strategy(fault: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=message):
        check_strategy(Made(fault=fault), tmp_path)


# ----------------------------------------------------------------------------------------------------------- hooks


def module(**hooks: Callable[..., Any]) -> ModuleType:
    made = ModuleType("made_up")
    for name, function in hooks.items():
        setattr(made, name, hookimpl(function))
    return made


def test_a_run_passes_through_every_hook(tmp_path: Path) -> None:
    seen: list[Any] = []
    context = play_run(
        module(
            graph_lowered=lambda graph: seen.append(graph.d_model),
            run_started=lambda context: seen.append(context.directory.path.exists()),
            model_built=lambda model: seen.append(type(model).__name__),
            step_finished=lambda step, metrics: seen.append((step, metrics["loss"])),
            evaluated=lambda results: seen.append(results),
            checkpoint_saved=lambda path: seen.append(path.name),
            run_finished=lambda summary: seen.append(summary["run"]),
            report_sections=lambda summary: [Section(title="t", columns=("a",), rows=((1,),))],
        ),
        tmp_path,
        losses=(2.0, 1.0),
    )
    assert seen == [*(16, True, "LanguageModel", (1, 2.0), (2, 1.0), {"perplexity_end": 2.0}, "step_000002", "small")]
    assert context.directory.path.is_relative_to(tmp_path)


def test_a_failure_reaches_the_hook(tmp_path: Path) -> None:
    seen: list[str] = []
    play_failure(module(run_failed=lambda error: seen.append(str(error))), tmp_path)
    assert seen == ["made up"]


def test_faults_of_hooks_come_out(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        play_run(module(step_finished=lambda step: 1 / 0), tmp_path / "a")
    with pytest.raises(PluginError, match="did you mean 'step_finished'"):
        play_run(module(step_finnished=lambda step: None), tmp_path / "b")
    with pytest.raises(PluginError, match="loss"):
        play_run(module(step_finished=lambda loss: None), tmp_path / "c")
    with pytest.raises(CheckFailed, match="is a str, not a"):
        play_run(module(report_sections=lambda summary: ["text"]), tmp_path / "d")
    with pytest.raises(ValueError, match="has 0 columns and a row of 1"):
        play_run(module(report_sections=lambda summary: [Section(title="t", columns=(), rows=((1,),))]), tmp_path / "e")


# --------------------------------------------------------------------------------------------------------- loaders

MODEL = {
    "type": "transformer",
    "embedder": {"type": "token", "vocab_size": 5, "d_model": 4},
    "topology": {"type": "stacked", "layers": [{"type": "linear", "d_out": 4}]},
}


class Sound:
    """A single safetensors file that starts with a header of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.is_file() and path.suffix == ".made"

    @classmethod
    def open(cls, path: Path) -> Any:
        return cls(path)

    def model(self) -> Any:
        return MODEL

    def layout(self) -> tuple[Stored, ...]:
        return tuple(
            Stored(key=name, name=name, shape=tuple(tensor.shape), dtype="float32") for name, tensor in self.read()
        )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.read()

    def read(self) -> list[tuple[str, torch.Tensor]]:
        try:
            return list(load_file(self.path).items())
        except Exception as error:
            raise InputError(str(error)) from error

    def tokenizer(self) -> None:
        return None

    def key_of(self, path: tuple[str | int, ...]) -> None:
        return None

    def companions(self) -> dict[str, str]:
        return {}


class Greedy(Sound):
    @classmethod
    def accepts(cls, path: Path) -> bool:
        return path.is_file()


class Shy(Sound):
    @classmethod
    def accepts(cls, path: Path) -> bool:
        return False


class Doubling(Sound):
    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.read() * 2


class Forgetful(Sound):
    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.read()[1:]


class Lonely(Sound):
    companions = None  # type: ignore[assignment]


class Opaque(Sound):
    def model(self) -> Any:
        return {**MODEL, "topology": object()}


class Placed(Sound):
    """Says where its tensors lie, and may be wrong."""

    skipped: ClassVar[int] = 0
    dtype: ClassVar[str] = "float32"

    def layout(self) -> tuple[Stored, ...]:
        content = self.path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        base = 8 + length + self.skipped
        first = {key: entry["data_offsets"][0] for key, entry in json.loads(content[8 : 8 + length]).items()}
        return tuple(
            attrs.evolve(stored, span=FileSpan(path=self.path, offset=base + first[stored.key], dtype=self.dtype))
            for stored in super().layout()
        )


class Misplaced(Placed):
    skipped = 4


class Mistyped(Placed):
    dtype = "int32"


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (Greedy, "accepts empty_file, which is not its format"),
        (Shy, "does not accept its own tiny.made"),
        (Doubling, "twice"),
        (Forgetful, r"layout\(\) and tensors\(\) differ in embedder.weight"),
        (Lonely, r"what open\(\) gives has no method companions"),
        (Opaque, r"model\(\) is not plain data"),
        (Misplaced, r"the span of \S+weight does not hold the values that tensors\(\) gives"),
        (Mistyped, r"the span of \S+weight is of int32, and tensors\(\) gives float32"),
        (Sound, r"open\(\), model\(\) or layout\(\) imports"),  # this module imports torch
        (Placed, r"open\(\), model\(\) or layout\(\) imports"),  # and finds no other fault
    ],
)
def test_fault_of_a_loader(loader: Any, message: str, tmp_path: Path) -> None:
    from caramba_core.lowering import lower
    from caramba_core.manifest.structure import structure_model
    from caramba_core.nn.build import build

    path = tmp_path / "tiny.made"
    save_file(build(lower(structure_model(MODEL, origin="made up")), seed=0).state_dict(), path)
    with pytest.raises(CheckFailed, match=message):
        check_loader(loader, path, tmp_path)
