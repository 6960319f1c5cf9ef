"""Attention within documents by flex_attention: blocks of 128 tokens that no document shares are left out.

Documents lie behind each other, so that the keys that a query sees begin at one token and end at itself: which blocks
are left out follows from where each document begins, without a mask ``[B, T, T]``.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["attend_blocks", "document_blocks", "has_blocks"]

_BLOCK: Final = 128
_LEAST_WIDTH: Final = 16
"""What a tensor core multiplies."""


def has_blocks(device: torch.device) -> bool:
    """Whether flex_attention is fast there: its kernels are Triton's."""
    return device.type == "cuda" and find_spec("triton") is not None


def document_blocks(begins: Tensor, window: int | None) -> BlockMask:
    """The blocks of queries and keys in which something is seen.

    ``begins``, int64 ``[B, T]``, says where each token's document begins; a token sees the last ``window`` tokens of
    it.  Nothing here waits for the device.
    """
    batch, tokens = begins.shape
    place = torch.arange(tokens, device=begins.device)
    least = begins if window is None else torch.maximum(begins, place - window + 1)
    row = torch.arange(-(-tokens // _BLOCK), device=begins.device)
    first = least[:, row * _BLOCK, None]  # [B, blocks, 1]: it grows from token to token
    last = least[:, (row * _BLOCK + _BLOCK - 1).clamp(max=tokens - 1), None]
    complete = (row * _BLOCK + _BLOCK <= tokens)[:, None]
    column = row.expand(batch, len(row), len(row))
    seen = (column >= first // _BLOCK) & (column <= row[:, None])
    whole = (column * _BLOCK >= last) & (column < row[:, None]) & complete

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= least[batch, query])

    return BlockMask.from_kv_blocks(
        *_listed(seen & ~whole),
        *_listed(whole),
        BLOCK_SIZE=_BLOCK,
        mask_mod=visible,
        seq_lengths=(tokens, tokens),
    )


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask, scale: float) -> Tensor | None:
    """Softmax attention of ``[B, H, T, d]`` to ``[B, G, T, d]`` in these blocks; ``None`` for too narrow heads."""
    on_cpu = query.device.type == "cpu"
    if not on_cpu and min(query.shape[-1], value.shape[-1]) < _LEAST_WIDTH:
        return None
    attend: Any = flex_attention if on_cpu or torch.compiler.is_compiling() else _compiled()
    grouped = query.shape[1] != key.shape[1]
    mixed: Tensor = attend(query, key, value, block_mask=blocks, scale=scale, enable_gqa=grouped)
    return mixed


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def _listed(marked: Tensor) -> tuple[Tensor, Tensor]:
    """Bool ``[B, n, n]`` as the numbers of marked columns ``[B, 1, n]`` and these columns first ``[B, 1, n, n]``."""
    count = marked.sum(-1, dtype=torch.int32).unsqueeze(1)
    return count, marked.byte().argsort(stable=True, dim=-1, descending=True).int().unsqueeze(1)
