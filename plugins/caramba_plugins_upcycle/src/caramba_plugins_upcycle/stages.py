"""Walking a model stage by stage: what stands between two hidden states, such as one residual branch of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import attrs
import torch
from torch import Tensor, nn

from caramba_core.components import Topology
from caramba_core.graph import ROOT
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.sequence import LayerSequence, names_of

__all__ = ["Stage", "adds_to_stream", "input_of", "stages"]


@attrs.frozen
class Stage:
    """A part of the model between two hidden states; ``names`` are the dotted names that its nodes begin with."""

    names: tuple[str, ...]
    run: Callable[[Tensor, Frame], Tensor]

    def holds(self, node: str) -> bool:
        """Whether a node lies in this stage."""
        return any(node == name or node.startswith(f"{name}.") for name in self.names)


def stages(model: LanguageModel) -> Iterator[Stage]:
    """The stages of a model in order; running them one after the other is running the model's layers.

    The repeated blocks of a separable topology are walked through, everything else is a stage as it stands.
    """
    topologies = {node.name: node for node in model.graph.walk() if node.scopes and not node.inline}
    for step in model.wiring:
        names = tuple(f"{ROOT}.{name}" for name in names_of((step,)))
        node = topologies.get(names[0]) if isinstance(step, str) else None
        if node is not None and isinstance(node.config, Topology) and node.config.separable:
            for scope in node.scopes:
                block = model.get_submodule(scope.name.removeprefix(f"{ROOT}."))
                assert isinstance(block, LayerSequence)
                for part in block.wiring:
                    inside = tuple(f"{scope.name}.{name}" for name in names_of((part,)))
                    yield Stage(inside, partial(block.run, (part,)))
        else:
            yield Stage(names, partial(model.run, (step,)))


class _ReachedError(Exception):
    """Carries a module's input out of a stage; never leaves this file."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


def input_of(module: nn.Module, stage: Stage, x: Tensor, frame: Frame) -> Tensor:
    """What ``module`` would read if ``stage`` ran on ``x``; nothing behind the module is computed."""

    def stop(_: nn.Module, arguments: tuple[Tensor, Frame]) -> None:
        raise _ReachedError(arguments[0])

    handle = module.register_forward_pre_hook(stop)
    try:
        stage.run(x, frame)
    except _ReachedError as reached:
        return reached.x
    finally:
        handle.remove()
    raise AssertionError(f"{stage.names} did not reach its site")


def adds_to_stream(module: nn.Module, stage: Stage, x: Tensor, frame: Frame) -> bool:
    """Whether the stage adds the module's output to the hidden states that it was given: a residual branch's last."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, Frame], output: Tensor) -> None:
        outputs.append(output)

    handle = module.register_forward_hook(keep)
    try:
        y = stage.run(x, frame)
    finally:
        handle.remove()
    return len(outputs) == 1 and y.shape == x.shape == outputs[0].shape and bool(torch.equal(y, x + outputs[0]))
