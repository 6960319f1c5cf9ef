"""Putting a student together from its teacher, a checkpoint, or nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import attrs
import torch
from torch import Tensor, nn

from caramba_core.component import Attention
from caramba_core.errors import InputError
from caramba_core.graph import ROOT, Graph, Node
from caramba_core.nn.build import build, initialize
from caramba_core.nn.language_model import LanguageModel

__all__ = ["Site", "assemble", "find_sites"]


@attrs.frozen(kw_only=True)
class Site:
    """A pair of nodes of the same name whose components differ: what a conversion converts."""

    name: str
    teacher: Node
    student: Node


def find_sites(teacher: Graph, student: Graph) -> tuple[Site, ...]:
    """The attentions that differ, in the order of execution; everything else must be equal.

    Raises :class:`InputError` listing every other difference: such models cannot be converted into one another.
    """
    old, new = teacher.nodes(), student.nodes()
    differences = [f"{name} is in the manifest, not in the teacher" for name in new if name not in old]
    differences += [f"{name} is in the teacher, not in the manifest" for name in old if name not in new]
    if teacher.tied_embeddings != student.tied_embeddings:
        differences.append(
            f"tied_embeddings: the teacher has {teacher.tied_embeddings}, the manifest {student.tied_embeddings}"
        )
    sites = []
    for name, node in new.items():
        if name not in old or _same(old[name], node):
            continue
        if isinstance(node.config, Attention) and isinstance(old[name].config, Attention):
            sites.append(Site(name=name, teacher=old[name], student=node))
        else:
            differences += [f"{name}.{text}" for text in _differences(old[name], node)]
    if differences:
        shown = differences[:12] + ([f"... and {len(differences) - 12} more"] if len(differences) > 12 else [])
        raise InputError(
            "the manifest's model differs from the teacher in more than its attention:\n    " + "\n    ".join(shown),
            expected="the same model, but for the attentions that are to be converted",
            hint="compare with the teacher's own sizes: the checkpoint's config.json or GGUF header",
        )
    return tuple(sites)


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
    old = {} if teacher is None else teacher.graph.nodes()
    own = set(trained) | {name for name, new in graph.attentions().items() if name in old and not _same(old[name], new)}
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


def _same(a: Node, b: Node) -> bool:
    return not _differences(a, b)


def _differences(teacher: Node, student: Node) -> list[str]:
    if type(teacher.config) is not type(student.config):
        return [f"type: the teacher has {type(teacher.config).__name__}, the manifest {type(student.config).__name__}"]
    if teacher.scopes or student.scopes:  # topologies: their layers are compared node by node
        return (
            []
            if len(teacher.scopes) == len(student.scopes)
            else [f"bodies: the teacher has {len(teacher.scopes)}, the manifest {len(student.scopes)}"]
        )
    found = []
    for name in (field.name for field in attrs.fields(cast(Any, type(teacher.config))) if field.name != "name"):
        theirs, ours = getattr(teacher.config, name), getattr(student.config, name)
        if theirs != ours:
            found.append(f"{name}: the teacher has {theirs}, the manifest {ours}")
    return found
