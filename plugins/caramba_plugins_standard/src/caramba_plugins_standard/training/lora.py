"""Low-rank adapters in torch: matrices that stay as they are, beside which two narrow ones train (arXiv 2106.09685)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caramba_core.errors import InputError
from caramba_core.graph import ROOT, local_name
from caramba_core.nn.language_model import LanguageModel
from caramba_core.run.checkpoint import load_tensors, read_state
from caramba_core.run.context import RunContext
from caramba_plugins_standard.training import LoRA
from caramba_plugins_standard.training.planning import adapted_matrices

__all__ = ["AdaptedMatrix", "Adapters", "adapt", "holds_adapters_alone", "summed"]

_ALONE = "adapters"
"""What the state of a checkpoint without sums says of them."""


class AdaptedMatrix(nn.Module):
    """In the place of a weight ``[n, D]``: the weight itself, frozen, and ``up @ down`` times ``scale`` added to it.

    ``down`` is ``[rank, D]``, ``up`` ``[n, rank]``.  Where a module does not go through
    :func:`caramba_core.nn.module.linear`, it reads the sum, as a tensor.  A state dict holds the sum, in the weight's
    own name and type, on the CPU.
    """

    def __init__(self, weight: nn.Parameter, rank: int, scale: float) -> None:
        super().__init__()
        self.weight = weight
        self.scale = scale
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.down = nn.Parameter(torch.empty(rank, weight.shape[1], dtype=wide, device=weight.device))
        self.up = nn.Parameter(torch.zeros(len(weight), rank, dtype=wide, device=weight.device))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``[..., D] -> [..., n]``; the sum of both matrices is never made."""
        narrow = F.linear(x, self.down.to(x.dtype)) * self.scale
        return F.linear(x, self.weight, bias) + F.linear(narrow, self.up.to(narrow.dtype))

    def merged(self) -> Tensor:
        """The sum as one matrix, in the weight's type."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return torch.addmm(self.weight.to(self.up.dtype), self.up, self.down, alpha=self.scale).to(
                self.weight.dtype
            )

    def draw(self, key: str) -> None:
        """The values that training begins with: ``down`` uniform as torch's ``nn.Linear``, ``up`` zero."""
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        drawn = torch.rand(self.down.shape, generator=generator) * 2 - 1
        with torch.no_grad():
            self.down.copy_(drawn * self.down.shape[1] ** -0.5)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As of a tensor: the sum in another type, or elsewhere."""
        return self.merged().to(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "down", "up") or not hasattr(Tensor, name):
            return super().__getattr__(name)
        return getattr(self.merged(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Functions of torch read the sum."""

        def read(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(read, value))
            return value.merged() if isinstance(value, cls) else value

        return func(*map(read, args), **{name: read(value) for name, value in (kwargs or {}).items()})

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix.removesuffix(".")] = self.merged().detach().cpu()


def adapt(model: LanguageModel, names: Iterable[str], settings: LoRA, seed: int) -> dict[str, AdaptedMatrix]:
    """Put an adapter in the place of each matrix of a model with one of these dotted names."""
    places = {}
    for name in names:
        places[name] = AdaptedMatrix(model.get_parameter(local_name(name)), settings.rank, settings.scale)
        _replace(model, name, places[name])
        places[name].draw(f"{seed}:{name}")
    return places


def _replace(model: LanguageModel, name: str, matrix: AdaptedMatrix) -> None:
    node, _, weight = name.rpartition(".")
    module = model.get_submodule(local_name(node))
    delattr(module, weight)
    setattr(module, weight, matrix)


class Adapters:
    """All adapters of a run: put into its student, which is the one that it started from, with what it has learned."""

    def __init__(self, context: RunContext, settings: LoRA) -> None:
        if context.resume_from is not None:  # whose weights have the adapters in them
            context.student = _resumed(context)
        chosen = adapted_matrices(context.graph, settings, context.trained)
        self._context, self._scale = context, settings.scale
        self._student = context.student
        saved = {} if context.resume_from is None else load_tensors(context.resume_from, "lora")
        self._places = adapt(self._student, chosen, settings, context.seed)
        with torch.no_grad():
            for name, tensor in saved.items():
                self._student.get_parameter(local_name(name)).copy_(tensor)

    @property
    def count(self) -> int:
        """Values that the adapters add to the model's."""
        return sum(matrix.up.numel() + matrix.down.numel() for matrix in self._places.values())

    def tensors(self) -> Mapping[str, Tensor]:
        """What a checkpoint needs to go on, by dotted name."""
        return {
            f"{name}.{part}": getattr(matrix, part).detach()
            for name, matrix in self._places.items()
            for part in ("down", "up")
        }

    def alone(self, path: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
        """What a checkpoint at ``path`` holds in the place of the model, and says, that is there to go on from.

        That is what trains as a whole, and where the weights are that the run started from.
        """
        context, own = self._context, self.tensors()
        begun: dict[str, Any] = {}
        if context.parent is not None:
            digest = read_state(context.parent)["files"]["model.safetensors"]
            begun = {"path": os.path.relpath(context.parent.resolve(), path.resolve()), "sha256": digest}
        trained = {name: parameter.detach() for name, parameter in context.trainable() if name not in own}
        return trained, {_ALONE: {"begun": begun, "scale": self._scale}}

    def put_into(self, model: LanguageModel) -> None:
        """Give another model of the same graph adapters in the same places, whose values are yet to come."""
        for name, matrix in self._places.items():
            _replace(model, name, AdaptedMatrix(model.get_parameter(local_name(name)), len(matrix.down), matrix.scale))

    def merge(self) -> None:
        """Make each matrix the sum that checkpoints hold, one after the other: the student is an ordinary one again."""
        for name in list(self._places):
            node, _, weight = name.rpartition(".")
            module = self._student.get_submodule(local_name(node))
            merged = self._places.pop(name).merged().detach()
            delattr(module, weight)
            module.register_parameter(weight, nn.Parameter(merged, requires_grad=False))


def holds_adapters_alone(checkpoint: Path) -> bool:
    """Whether a checkpoint is there to go on from: it has no sums (:func:`summed`)."""
    return _ALONE in read_state(checkpoint)


def summed(checkpoint: Path, begin: Callable[[], Mapping[str, Tensor]], held: torch.dtype) -> Mapping[str, Tensor]:
    """The model's tensors of a run's checkpoint; where it holds adapters alone, their sums with what the run began on.

    That is in the checkpoint of another run, or what ``begin`` makes; frozen weights are in the type ``held``.
    """
    saved, note = load_tensors(checkpoint), read_state(checkpoint).get(_ALONE)
    if note is None:
        return saved
    if begun := note["begun"]:
        path = Path(os.path.normpath(checkpoint.resolve() / begun["path"]))
        if not path.is_dir() or read_state(path)["files"]["model.safetensors"] != begun["sha256"]:
            raise InputError(
                f"{checkpoint} holds adapters alone, and {path}, which they are added to, is "
                + ("another one by now" if path.is_dir() else "not there any more"),
                hint="finish the run: its last checkpoint holds the sums",
            )
        tensors = load_tensors(path)
    else:
        tensors = dict(begin())
    tensors |= saved
    factors = load_tensors(checkpoint, "lora")
    for name in {key.rpartition(".")[0] for key in factors}:
        weight, up, down = tensors[name].to(held), factors[f"{name}.up"], factors[f"{name}.down"]
        tensors[name] = torch.addmm(weight.to(up.dtype), up, down, alpha=note["scale"]).to(held)
    return tensors


def _resumed(context: RunContext) -> LanguageModel:
    """The student as the run began, with the whole nodes that it trains as the checkpoint has them."""
    assert context.resume_from is not None
    student = context.start()
    if context.trained:
        saved = load_tensors(context.resume_from)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[f"{ROOT}.{name}"])
    return student
