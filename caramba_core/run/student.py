"""Putting a student together from its teacher, a checkpoint, or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from caramba_core.graph import ROOT, Graph, local_name
from caramba_core.nn.build import build, initialize
from caramba_core.nn.fitting import require_fit
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
    built = {name: tensor.shape for name, tensor in student.state_dict().items()}  # to free what is replaced at once
    mine = {local_name(name): tensor for name, tensor in (tensors or {}).items()}
    given = {} if teacher is None else teacher.state_dict(keep_vars=True)
    theirs = {name: tensor for name, tensor in given.items() if name in built and tensor.shape == built[name]}
    own = {*trained, *own_attentions(graph, None if teacher is None else teacher.graph)}
    if tensors is None:
        initialize(student, seed, given=theirs)
    else:
        require_fit("the run's checkpoint", graph, [(name, name, tuple(tensor.shape)) for name, tensor in mine.items()])
    for name in [name for name, _ in student.named_parameters()]:
        path, _, weight = name.rpartition(".")
        node = f"{ROOT}.{path}"
        values = mine.get(name), theirs.get(name)
        made = _parameter(student.get_parameter(name), *values, trains=node in trained, own=node in own)
        student.get_submodule(path).register_parameter(weight, made)
    for name, buffer in student.named_buffers():
        value = mine.get(name, theirs.get(name))
        if value is not None:
            buffer.copy_(value)
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
