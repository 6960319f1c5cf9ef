"""Putting a student together from its teacher, a checkpoint, or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from caramba_core.errors import InputError
from caramba_core.graph import ROOT, Graph
from caramba_core.nn.build import build, initialize
from caramba_core.nn.language_model import LanguageModel
from caramba_core.sites import own_attentions

__all__ = ["assemble"]


def assemble(
    graph: Graph,
    *,
    teacher: LanguageModel | None,
    tensors: Mapping[str, Tensor] | None,
    trained: Collection[str],
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
) -> LanguageModel:
    """A student on ``device`` whose ``trained`` nodes are float32 and trainable, everything else frozen in ``dtype``.

    Values come from ``tensors`` (a checkpoint, by graph name), else from the teacher's weight of the same name and
    shape, else they are drawn from ``seed``.  Frozen weights that equal the teacher's share its storage, but for those
    of attentions that differ from the teacher's: a conversion writes into them.
    """
    student = build(graph, device=device, dtype=dtype)
    shared = {} if teacher is None else dict(teacher.state_dict(keep_vars=True))
    own = {*trained, *own_attentions(graph, None if teacher is None else teacher.graph)}
    if tensors is None:
        initialize(student, seed)
    else:
        _require_same_names(student, tensors)
    for path, module in student.named_modules():
        node = f"{ROOT}.{path}"
        for name, parameter in list(module.named_parameters(recurse=False)):
            key = f"{path}.{name}"
            mine = None if tensors is None else tensors[f"{ROOT}.{key}"]
            theirs = shared.get(key)
            if theirs is not None and theirs.shape != parameter.shape:
                theirs = None
            made = _parameter(parameter, mine, theirs, trains=node in trained, own=node in own)
            module.register_parameter(name, made)
        for name, buffer in list(module.named_buffers(recurse=False)):
            if tensors is not None and f"{node}.{name}" in tensors:
                buffer.copy_(tensors[f"{node}.{name}"])
            elif f"{path}.{name}" in shared and shared[f"{path}.{name}"].shape == buffer.shape:
                buffer.copy_(shared[f"{path}.{name}"])
    return student


def _parameter(
    built: nn.Parameter, mine: Tensor | None, theirs: Tensor | None, *, trains: bool, own: bool
) -> nn.Parameter:
    if not own and theirs is not None and (mine is None or torch.equal(mine.to(theirs), theirs)):
        return nn.Parameter(theirs.detach(), requires_grad=False)
    values = next(tensor for tensor in (mine, theirs, built) if tensor is not None)
    dtype = torch.float32 if trains and built.dtype in (torch.bfloat16, torch.float16) else built.dtype
    copied = values.detach().to(device=built.device, dtype=dtype, copy=True)
    return nn.Parameter(copied, requires_grad=trains)


def _require_same_names(student: LanguageModel, tensors: Mapping[str, Tensor]) -> None:
    expected = {f"{ROOT}.{name}": tuple(t.shape) for name, t in student.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        wrong = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
        shown = "\n    ".join(
            f"{n}: manifest {expected.get(n, 'has none')}, checkpoint {found.get(n, 'has none')}" for n in wrong[:12]
        )
        raise InputError(
            f"the checkpoint does not hold the manifest's model ({len(wrong)} tensors differ):\n    {shown}",
            hint="continue from a run of the same model, or convert again",
        )
