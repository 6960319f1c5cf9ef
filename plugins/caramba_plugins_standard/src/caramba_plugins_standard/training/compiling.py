"""Compiling a model block by block, or layer by layer where too many blocks differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from caramba_core.nn.module import ComponentModule, TopologyModule
from caramba_core.nn.sequence import LayerSequence

__all__ = ["compile_blocks", "join_frozen", "plan_compilation", "uncompile"]

_MOST_KINDS: Final = 8
"""Kinds of blocks that are compiled whole.  Each takes seconds, and sizes by layer make every block a kind."""


def compile_blocks(model: nn.Module, *, backend: str = "inductor") -> tuple[str, ...]:
    """Compile each block of a model as a whole, where few enough differ; equal blocks share one compiled graph.

    Returns the names of the layers that are compiled by themselves, with symbols in the place of their sizes.
    """
    modules, own = plan_compilation(model)
    modules += [model.get_submodule(name) for name in own]
    modules = [module for module in modules if not _gathers_inside(module)]
    # torch counts the graphs of all kinds of blocks as recompilations of one function
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 2 * len(modules))
    # sizes that differ between two layers become symbols: a few graphs, by which sizes are zero, equal or padded
    config.force_parameter_static_shapes, config.allow_unspec_int_on_nn_module = not own, bool(own)
    for module in modules:
        if isinstance(module, FSDPModule):  # whose hooks, which gather its weights, run around what is compiled
            module.forward = torch.compile(module.forward, fullgraph=True, backend=backend)
        else:
            module.compile(fullgraph=True, backend=backend)
    return tuple(own)


def join_frozen(teacher: nn.Module, student: nn.Module) -> None:
    """Lay the teacher's weights that one input is multiplied by side by side, for one larger product.

    Weights that the student shares stay where they are: they would be held twice.
    """
    shared = {parameter.data_ptr() for parameter in student.parameters()}
    for module in teacher.modules():
        if isinstance(module, ComponentModule):
            names = module.joint_weights()
            if shared.isdisjoint(getattr(module, name).data_ptr() for name in names):
                module.join(*names)


def uncompile(model: nn.Module) -> None:
    """Let every module of a model run as it is written again."""
    for module in model.modules():
        module._compiled_call_impl = None
        if isinstance(module, FSDPModule):
            module.forward = getattr(module.forward, "_torchdynamo_orig_callable", module.forward)


def _gathers_inside(module: nn.Module) -> bool:
    """Whether a part of a module gathers weights from other processes by itself, which breaks its graph."""
    return any(isinstance(part, FSDPModule) for part in module.modules() if part is not module)


def plan_compilation(model: nn.Module) -> tuple[list[nn.Module], list[str]]:
    """The modules to compile as they are, and the dotted names of layers each of which has sizes of its own.

    Every block is compiled whole, unless they are of more than eight kinds.  Then only blocks whose kind repeats are;
    of the others, the layers: those whose kind repeats as they are, and in a model with attention sizes by layer the
    attentions with symbolic sizes.
    """
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, LayerSequence) and name}
    kinds = _by_kind(blocks)
    if len(kinds) <= _MOST_KINDS:
        return list(blocks.values()), []
    single = {name: block for kind in kinds if len(kind) == 1 for name, block in kind.items()}
    layers = _by_kind({path: layer for name, block in single.items() for path, layer in _layers(name, block).items()})
    compiled = [module for kind in (*kinds, *layers) if len(kind) > 1 for module in kind.values()]
    return compiled, [path for kind in layers if len(kind) == 1 for path in kind]


def _layers(name: str, block: nn.Module) -> dict[str, nn.Module]:
    """The layers of a block by their dotted names, those inside topologies included."""
    modules = block.named_modules(prefix=name)
    return {path: m for path, m in modules if isinstance(m, ComponentModule) and not isinstance(m, TopologyModule)}


def _by_kind(modules: Mapping[str, nn.Module]) -> list[dict[str, nn.Module]]:
    """The modules, those that differ in the values of their weights alone together."""
    kinds: dict[str, dict[str, nn.Module]] = {}
    for name, module in modules.items():
        kinds.setdefault(_kind(module), {})[name] = module
    return list(kinds.values())


def _kind(module: nn.Module) -> str:
    return repr(
        [
            (path, type(inner), *(getattr(inner, name, None) for name in ("config", "width", "wiring")))
            for path, inner in module.named_modules()
        ]
    )
