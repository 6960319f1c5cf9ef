"""A small real run: model, teacher, tokens and folder, for strategies and hooks to be tried on."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from caramba_plugins_standard.gqa import MultiHeadAttention
from caramba_plugins_standard.layers import Linear, LinearHead, TokenEmbedder
from caramba_plugins_standard.loading import Checkpoint, PretrainedModel
from caramba_plugins_standard.modes import Train
from caramba_plugins_standard.topologies import Stacked
from caramba_plugins_standard.training import Strategy, Training
from caramba_terminal.reporter import Reporter
from rich.console import Console

from caramba_core.components import Model
from caramba_core.datasets import Dataset, Tokens
from caramba_core.lowering import lower
from caramba_core.manifest.load import Loaded
from caramba_core.manifest.schema import Group
from caramba_core.modes import Data, Evaluation, Run, Teacher
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel
from caramba_core.plugins.registry import registry
from caramba_core.run.context import GroupContext, RunContext
from caramba_core.run.directory import RunDirectory, State
from caramba_core.teachers import Tokenizer

__all__ = ["small_run"]

_VOCABULARY = 17
_WIDTH = 16


class _Counting(Dataset):
    """Token ids that count up and start anew: something that a model can learn."""

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """2,000 ids."""
        return Tokens(ids=np.arange(2000, dtype=np.int64) % _VOCABULARY, tokenizer=None, origin="counting")


class _Drawn(PretrainedModel):
    """A teacher without a checkpoint: weights drawn from a seed, large enough for attention to choose."""

    def load(self, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        """The model, frozen."""
        model = build(self.graph, device=device, dtype=dtype, seed=11).requires_grad_(False).eval()
        for parameter in model.parameters():
            parameter.mul_(20)
        return model


def _model(n_heads: int) -> Model:
    """Attention, a projection, attention."""
    first, second = (MultiHeadAttention(n_heads=n_heads, head_dim=_WIDTH // n_heads) for _ in range(2))
    return Model(
        embedder=TokenEmbedder(vocab_size=_VOCABULARY, d_model=_WIDTH),
        topology=Stacked(layers=(first, Linear(), second)),
        head=LinearHead(),
    )


def small_run(
    folder: Path, *, strategy: Strategy | None = None, trains: tuple[str, ...] = ("*",), steps: int = 20
) -> RunContext:
    """A training run on the CPU whose student has two attentions that differ from its teacher's.

    Its folder is inside of ``folder``; what it would print is dropped.
    """
    model, teacher = _model(n_heads=2), _model(n_heads=1)
    run = Run(id="small", mode="train", seed=3, device="cpu")
    if strategy is not None:
        settings = Training(strategy=strategy, trains=trains, device="cpu", lr=1e-2)
        run = Train(id="small", mode="train", seed=3, steps=steps, train=settings)
    data = Data(train=_Counting(), heldout=_Counting())
    evaluation = Evaluation(context=16, windows=4)
    group = Group(name="kit", teacher=Teacher(source="drawn"), data=data, eval=evaluation, model=model, runs=(run,))
    shared = GroupContext(
        loaded=cast(Loaded, SimpleNamespace(folder=folder)),  # no manifest was read; a group asks for nothing else
        group=group,
        graph=lower(model),
        teacher=_Drawn(cast(Checkpoint, SimpleNamespace(tokenizer=lambda: None)), lower(teacher), "drawn"),
    )
    directory = RunDirectory(folder / "runs" / "kit" / "small")
    directory.path.mkdir(parents=True, exist_ok=True)
    directory.set_state(State(status="running", document={}))
    reporter = Reporter(Console(file=StringIO()))
    return RunContext(
        shared=shared, run=run, directory=directory, reporter=reporter, hooks=registry().hooks, parent=None
    )
