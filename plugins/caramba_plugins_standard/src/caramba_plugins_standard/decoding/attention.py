"""Attention of one new token of each sequence to everything that its cache holds.

Axes: B batch, U units (groups of query heads that read the same values), M query heads of a unit, S places of the
cache, w width of a part of the keys, v width of the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from caramba_core.nn.cache import EntryCache
from caramba_core.nn.frame import Frame
from caramba_plugins_standard.quantization import dequantize
from caramba_plugins_standard.quantized import Blocks

__all__ = ["CachedPart", "attend_cached", "merge_attention"]


@dataclass(frozen=True, slots=True)
class CachedPart:
    """An entry of a cache as keys or values of ``width``: a part for each unit, or one that all units read."""

    entry: EntryCache
    width: int
    per_unit: bool

    def planes(self, rows: int) -> tuple[Tensor, Tensor | None]:
        """Values ``[rows, S, C]``, or codes ``[rows, S, bytes]`` and the blocks' scales ``[rows, S, n, 2]``."""
        stored = tuple(plane.expand(rows, *plane.shape[1:]) for plane in self.entry.planes.values())
        return stored[0].flatten(2), stored[1] if len(stored) == 2 else None


def attend_cached(
    query: Tensor,
    keys: Sequence[CachedPart],
    values: CachedPart | None,
    frame: Frame,
    *,
    scale: float,
    up: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each sequence's newest token to the cache that it was put into.

    ``query`` ``[B, U, M, sum of w]`` meets one or two parts of the keys, in their order; without ``values`` the last
    part of the keys is what is mixed.  ``frame.ends`` says how many tokens each sequence has, ``frame.starts`` at which
    they begin; where the cache is of one sequence, all rows are tokens of it.  Gives ``[B, U, M, v]`` and the
    log-sum-exp of the scores ``[B, U, M]`` in float32 or wider.  ``up`` ``[N, d, v]`` expands what is mixed, for ``N``
    equal runs of a sequence's heads: ``[B, U, M, d]``.

    On CUDA one kernel reads the cache once, as it is stored.  Elsewhere it is spelled out.
    """
    assert 1 <= len(keys) <= 2
    assert frame.ends is not None, "a decode step"
    ends = frame.ends
    starts = torch.zeros_like(ends) if frame.starts is None else frame.starts
    part = keys[-1]
    storage, entry = part.entry.storage, part.entry.entry
    bits, block = (storage.bits, storage.block) if isinstance(storage, Blocks) else (16, 1)
    first = keys[0] if len(keys) == 2 else None
    widths = [0 if first is None else first.width, part.width, part.width if values is None else values.width]
    per_unit = [first is not None and first.per_unit, part.per_unit, (values or part).per_unit]
    mixed, total = torch.ops.caramba.attend_cached(
        query,
        *((None, None) if first is None else first.planes(len(query))),
        *part.planes(len(query)),
        *((None, None) if values is None else values.planes(len(query))),
        up,
        starts,
        ends,
        widths,
        per_unit,
        scale,
        bits,
        block,
        entry.window or 0,
        entry.sinks,
    )
    return mixed, total


def merge_attention(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """What attention over two sets of tokens gives: of outputs ``[..., v]`` and log-sum-exps ``[...]`` of each."""
    share = (other[1] - one[1]).sigmoid().nan_to_num(0.0)[..., None]  # both minus infinity: neither has a token
    return (one[0] * (1 - share) + other[0] * share).to(one[0].dtype)


def _spelled_out(
    query: Tensor,
    key: Tensor | None,
    key_blocks: Tensor | None,
    shared: Tensor | None,
    shared_blocks: Tensor | None,
    value: Tensor | None,
    value_blocks: Tensor | None,
    up: Tensor | None,
    starts: Tensor,
    ends: Tensor,
    widths: Sequence[int],
    per_unit: Sequence[bool],
    scale: float,
    bits: int,
    block: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor]:
    """:func:`attend_cached` spelled out; also what its kernel is compared with."""
    units = query.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    longest = int(ends.max()) if query.device.type == "cpu" and not window else None  # nobody waits for it there

    def read(part: Tensor, blocks: Tensor | None, width: int, own: bool) -> Tensor:
        part = part[:, :longest]
        if blocks is not None:
            blocks = blocks[:, :longest]
            part = dequantize(part, blocks, width * units if own else width, bits, block)
        part = part.to(wide)
        return part.view(*part.shape[:2], units, width) if own else part[:, :, None].expand(-1, -1, units, -1)

    parts = [
        read(part, blocks, width, own)
        for part, blocks, width, own in zip((key, shared), (key_blocks, shared_blocks), widths, per_unit, strict=False)
        if part is not None
    ]
    mixed = parts[-1] if value is None else read(value, value_blocks, widths[2], per_unit[2])
    keys = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    scores = torch.einsum("bumw,bsuw->bums", query.to(wide), keys) * scale
    place = torch.arange(scores.shape[-1], device=query.device)
    last = ends[:, None]
    text = place.expand(last.shape[0], -1)
    if window:  # a place behind the sinks holds the last token that was written there
        behind = last - 1 - (last - 1 - place) % max(window - sinks, 1)
        text = torch.where((place < sinks) | (last <= window), text, behind)
    seen = (place < last) & (text >= starts[:, None])
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    weights = scores.softmax(dim=-1).nan_to_num(0.0)
    found = torch.einsum("bums,bsuv->bumv", weights, mixed)
    if up is not None:
        runs = found.reshape(len(found), len(up), -1, found.shape[-1])
        found = (runs @ up.to(wide).transpose(1, 2)).view(*found.shape[:3], -1)
    return found.to(query.dtype), scores.logsumexp(dim=-1)


def _on_cuda(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    from caramba_plugins_standard.decoding.kernel import attend_splits

    if query.dtype == torch.float64:  # the kernel sums in float32
        return _spelled_out(query, *rest)
    if rest[6] is not None:
        rest = (*rest[:6], rest[6].contiguous(), *rest[7:])
    return attend_splits(query.contiguous(), *rest)


def _shapes(query: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    up, widths = rest[6], rest[9]
    wide = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty(*query.shape[:3], widths[2] if up is None else up.shape[1]), query.new_empty(
        query.shape[:3], dtype=wide
    )


_LIBRARY: Final = torch.library.Library("caramba", "FRAGMENT")
_LIBRARY.define(
    "attend_cached(Tensor query, Tensor? key, Tensor? key_blocks, Tensor? shared, Tensor? shared_blocks, "
    "Tensor? value, Tensor? value_blocks, Tensor? up, Tensor starts, Tensor ends, int[] widths, bool[] per_unit, "
    "float scale, int bits, int block, int window, int sinks) -> (Tensor, Tensor)"
)
_LIBRARY.impl("attend_cached", _spelled_out, "CompositeExplicitAutograd")
_LIBRARY.impl("attend_cached", _on_cuda, "CUDA")
torch.library.register_fake("caramba::attend_cached", _shapes, lib=_LIBRARY)
