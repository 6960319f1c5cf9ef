"""How DeepSeek's checkpoints hold the projections of a latent attention (light).

One tensor has the queries of all heads, head by head: the part without positions, then the rotary one.  One has the
latent and the rotary key below it, one the keys and the values that heads read from the latent, head by head.  Rotary
pairs lie side by side there, and half of the rotary part apart here.

Axes: H heads, d width of a head without positions, e width of the rotary part, r rank, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs

from caramba_plugins_llama.head_rows import head_order, inverse, rows_in_order

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["JOINED", "LatentRows"]

JOINED: Final = {
    "self_attn.q_proj": ("attention.q_proj", "attention.q_rope_proj"),
    "self_attn.kv_a_proj_with_mqa": ("attention.kv_down_proj", "attention.k_rope_proj"),
    "self_attn.kv_b_proj": ("attention.k_up_proj", "attention.v_up_proj"),
}
"""Hugging Face's projections, and the parameters that each holds."""

_TURNED: Final = ("q_rope_proj", "k_rope_proj")
_PARTNER: Final = {first.partition(".")[2]: second.partition(".")[2] for first, second in JOINED.values()}


@attrs.frozen(kw_only=True)
class LatentRows:
    """The sizes of a latent attention, which say where each parameter's rows are."""

    heads: int
    content: int
    rotary: int
    rank: int

    @classmethod
    def of(cls, attention: Any) -> LatentRows:
        """From the fields of an attention, by their names."""
        found = attention if isinstance(attention, Mapping) else attrs.asdict(attention, recurse=False)
        return cls(heads=found["n_heads"], content=found["head_dim"], rotary=found["rope_dim"], rank=found["rank"])

    def _place(self, name: str) -> tuple[int, int, int]:
        """How many blocks of rows its tensor has, and the rows of a parameter in each: first and last."""
        if name in ("kv_down_proj", "k_rope_proj"):
            return (1, 0, self.rank) if name == "kv_down_proj" else (1, self.rank, self.rank + self.rotary)
        if name in ("q_proj", "k_up_proj"):
            return self.heads, 0, self.content
        return self.heads, self.content, self.content + (self.rotary if name == "q_rope_proj" else self.content)

    def shape(self, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a parameter in a tensor; the tensor's own where its rows are others than they should be."""
        blocks, first, last = self._place(name)
        whole = self._place(_PARTNER.get(name, name))[2]
        return (blocks * (last - first), *stored[1:]) if stored[:1] == (blocks * whole,) else stored

    def taken(self, name: str, values: Tensor) -> Tensor:
        """A parameter out of its tensor."""
        blocks, first, last = self._place(name)
        if self.shape(name, tuple(values.shape)) == tuple(values.shape):
            return values  # of another size, which is an error elsewhere
        rows = values.unflatten(0, (blocks, -1))[:, first:last].flatten(0, 1)
        order = head_order(self.rotary, self.rotary, adjacent=True)
        return rows_in_order(rows, order) if name in _TURNED and order is not None else rows.contiguous()

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor of two parameters, in the order of :data:`JOINED`."""
        import torch

        order, parts = head_order(self.rotary, self.rotary, adjacent=True), []
        for name, values in sorted(tensors.items(), key=lambda item: item[0] not in _PARTNER):
            turned = name in _TURNED and order is not None
            rows = rows_in_order(values, inverse(order or ())) if turned else values
            parts.append(rows.unflatten(0, (self._place(name)[0], -1)))
        return torch.cat(parts, dim=1).flatten(0, 1)
