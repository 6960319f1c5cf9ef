"""A small real run: model, teacher, tokens and folder, for strategies and hooks to be tried on."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import numpy as np
import torch
from caramba_plugins_standard.loading import PretrainedModel, Stored
from caramba_plugins_standard.modes import Train
from caramba_plugins_standard.training import Strategy, Training
from rich.console import Console

from caramba_core.component import Layer, Model, evolve
from caramba_core.datasets import Dataset, Tokens
from caramba_core.graph import Graph
from caramba_core.lowering import lower
from caramba_core.manifest.load import Loaded
from caramba_core.manifest.schema import Group
from caramba_core.modes import Data, Evaluation, Run, Teacher
from caramba_core.nn.build import build
from caramba_core.plugins.registry import registry
from caramba_core.run.context import GroupContext, RunContext
from caramba_core.run.directory import RunDirectory, State
from caramba_core.run.reporter import Reporter
from caramba_core.teachers import Tokenizer
from caramba_plugins_testing.components import TinyAttention, TinyChain, TinyEmbedder, TinyHead, TinyLinear

__all__ = ["small_run"]

_VOCABULARY = 17
_WIDTH = 16


class _Counting(Dataset):
    """Token ids that count up and start anew: something that a model can learn."""

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """2,000 ids."""
        return Tokens(ids=np.arange(2000, dtype=np.int64) % _VOCABULARY, tokenizer=None, origin="counting")


@attrs.frozen
class _Drawn:
    """A checkpoint of random weights, as loaders give it."""

    graph: Graph
    path: Path = Path("drawn")

    def model(self) -> dict[str, Any]:
        """Not used: the graph is known."""
        raise NotImplementedError

    def layout(self) -> tuple[Stored, ...]:
        """Every tensor under its own name."""
        return tuple(
            Stored(key=name, name=name, shape=tuple(values.shape), dtype=str(values.dtype))
            for name, values in self.tensors()
        )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Weights drawn from a seed, large enough for attention to choose."""
        for name, values in build(self.graph, seed=11).state_dict().items():
            yield name, values * 20

    def tokenizer(self) -> None:
        """None."""

    def key_of(self, path: tuple[str | int, ...]) -> None:
        """None: nothing is read from a configuration."""

    def companions(self) -> dict[str, str]:
        """None."""
        return {}


def _model(attention: Layer) -> Model:
    return Model(
        embedder=TinyEmbedder(vocab_size=_VOCABULARY, d_model=_WIDTH),
        topology=TinyChain(layers=(attention, TinyLinear(), evolve(attention))),
        head=TinyHead(),
    )


def small_run(
    folder: Path, *, strategy: Strategy | None = None, trains: tuple[str, ...] = ("*",), steps: int = 20
) -> RunContext:
    """A training run on the CPU whose student has two attentions that differ from its teacher's.

    Its folder is inside of ``folder``; what it would print is dropped.
    """
    model, teacher = _model(TinyAttention(n_heads=2)), _model(TinyAttention(n_heads=1))
    run = Run(id="small", mode="train", seed=3, device="cpu")
    if strategy is not None:
        settings = Training(strategy=strategy, trains=trains, device="cpu", lr=1e-2)
        run = Train(id="small", mode="train", seed=3, steps=steps, train=settings)
    data = Data(train=_Counting(), heldout=_Counting())
    evaluation = Evaluation(context=16, windows=4)
    group = Group(name="kit", teacher=Teacher(source="drawn"), data=data, eval=evaluation, model=model, runs=(run,))
    graph = lower(teacher)
    shared = GroupContext(
        loaded=cast(Loaded, SimpleNamespace(folder=folder)),  # no manifest was read; a group asks for nothing else
        group=group,
        graph=lower(model),
        teacher=PretrainedModel(_Drawn(graph), graph, "drawn"),
    )
    directory = RunDirectory(folder / "runs" / "kit" / "small")
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.set_state(State(status="running", document={}))
    reporter = Reporter(Console(file=StringIO()))
    return RunContext(
        shared=shared, run=run, directory=directory, reporter=reporter, hooks=registry().hooks, parent=None
    )
