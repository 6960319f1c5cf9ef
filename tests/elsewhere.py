"""Tensors that lie on another device than the CPU, without one: their values are held on the CPU, and never mixed."""

from __future__ import annotations

from collections import Counter
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["DEVICE", "Elsewhere", "Placed", "place"]

DEVICE = torch.device("meta:0")
"""One that nothing here has kernels or branches of its own for."""

_TAKES_BOTH = {"copy_", "_to_copy", "index", "index_put_", "index_put"}
"""Copies, and indices from the CPU."""


class Placed(Tensor):
    """A tensor on :data:`DEVICE` whose values are ``held`` on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Placed:
        shape: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made: Placed = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=DEVICE, **shape)  # type: ignore[attr-defined]
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(function, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Placed({self.held})"


class _Literals(TorchFunctionMode):
    """``torch.tensor``, which no mode of operations sees."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.tensor and kwargs.get("device") == DEVICE:
            return Placed(torch.tensor(*args, **{**kwargs, "device": None}))
        return function(*args, **kwargs)


class Elsewhere(TorchDispatchMode):
    """A block whose new tensors lie where they are asked for; ``on_cpu`` counts the operations of the CPU by name."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: Counter[str] = Counter()
        self._literals = _Literals()

    def __enter__(self) -> Self:
        self._literals.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._literals.__exit__(*failure)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = _computed(function, args, kwargs or {})
        if not any(isinstance(leaf, Placed) for leaf in tree_leaves((args, made))):
            self.on_cpu[function.overloadpacket.__name__] += 1
        return made


def place(module: nn.Module) -> None:
    """Take a module's parameters and buffers to :data:`DEVICE`."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            made = nn.Parameter(Placed(parameter.detach()), requires_grad=parameter.requires_grad)
            part.register_parameter(name, made)
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, Placed(buffer))


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, on the device of what it takes; :class:`AssertionError` where that is of two."""
    name = function.overloadpacket.__name__
    if name == "_fused_sdp_choice":
        return 0  # plain products
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    assert all(isinstance(leaf, Placed) or leaf.device.type == "cpu" for leaf in tensors), name
    placed = {id(leaf.held): leaf for leaf in tensors if isinstance(leaf, Placed)}
    mixed = placed and any(not isinstance(leaf, Placed) and leaf.ndim for leaf in tensors)
    assert not mixed or name in _TAKES_BOTH, f"{name} of tensors on two devices"
    first_on_cpu = tensors and not isinstance(tensors[0], Placed)
    assert not (first_on_cpu and placed) or name == "copy_", f"{name} of a tensor on the CPU with one elsewhere"
    asked = kwargs.get("device")
    elsewhere = bool(placed) and not first_on_cpu if asked is None else asked == DEVICE
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    assert not elsewhere or kwargs.get("generator") is None, f"{name} elsewhere with a generator of the CPU"
    args, kwargs = tree_map_only(Placed, lambda leaf: leaf.held, (args, kwargs))
    made = function(*args, **kwargs)
    if name == "_to_copy" and elsewhere != bool(placed) and made is tensors[0]:
        made = made.clone()
    if not elsewhere:
        return made
    return tree_map_only(Tensor, lambda leaf: placed[id(leaf)] if id(leaf) in placed else Placed(leaf), made)
