"""Documents that share a sequence: attention, positions and loss stay within each, as if it stood alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask

from caramba_core.components import Attention
from caramba_core.errors import InputError
from caramba_core.graph import Graph
from caramba_core.nn.frame import Frame, Taps
from caramba_core.nn.language_model import LanguageModel
from caramba_plugins_standard.training.document_blocks import attend_blocks, document_blocks, has_blocks
from caramba_plugins_standard.training.rounding import RoundingCache

__all__ = ["PackedFrame", "packed_frame", "require_documents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFrame(Frame):
    """The frame of sequences that hold several documents each, without a cache but one that rounds.

    ``documents``, int64 ``[B, T]``, says at which token the document of a token begins: no token sees another one's.
    ``blocks``, by window, are what :meth:`attend` leaves nothing out of; where there are none, it takes a mask.
    """

    documents: Tensor
    blocks: Mapping[int | None, BlockMask] = field(default_factory=dict)

    def hidden_keys(self, before: int, context: int) -> Tensor:
        """Tokens of other documents: bool ``[B, T, T]``."""
        assert before == 0 and context == self.documents.shape[1], "documents are packed in passes without a cache"
        return self.documents[:, :, None] != self.documents[:, None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None = None) -> Tensor:
        """Causal softmax attention of ``[B, H, T, d]`` to the last ``window`` of ``[B, G, T, d]``, within documents."""
        blocks = self.blocks.get(window)
        if blocks is not None:
            mixed = attend_blocks(query, key, value, blocks, scale)
            if mixed is not None:
                return mixed
        place = torch.arange(query.shape[2], device=query.device)
        ahead = place > place[:, None]
        hidden = ahead if window is None else ahead | (place <= place[:, None] - window)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=~(hidden | self.hidden_keys(0, len(place))).unsqueeze(1),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )


def packed_frame(
    model: LanguageModel,
    tokens: Tensor,
    begins: Tensor | None,
    *,
    cache: RoundingCache | None = None,
    taps: Taps | None = None,
    in_blocks: bool | None = None,
) -> Frame:
    """The frame of tokens ``[B, T]``; an ordinary one without ``begins``, bool ``[B, T]``: where documents begin.

    Attention is computed ``in_blocks`` where that is fast (on CUDA), if nothing is said.  Raises :class:`InputError`
    where the model has an attention that cannot keep to its document.  ``cache`` rounds keys and values.
    """
    if begins is None:
        return Frame.of(tokens, cache=cache, taps=taps)
    require_documents(model.graph)
    place = torch.arange(tokens.shape[1], device=tokens.device)
    begin = (begins * place).cummax(1).values
    if in_blocks if in_blocks is not None else has_blocks(tokens.device):
        windows = {getattr(node.config, "window", None) for node in model.graph.attentions().values()}
        blocks = {window: document_blocks(begin, window) for window in windows}
    else:
        blocks = {}
    return PackedFrame(positions=place - begin, cache=cache, documents=begin, taps=taps, blocks=blocks)


def require_documents(graph: Graph) -> None:
    """Raise :class:`InputError` for a model with an attention that cannot keep to its document."""
    for name, node in graph.attentions().items():
        assert isinstance(node.config, Attention)
        if not node.config.takes_documents:
            raise InputError(
                f"{name} ({type(node.config).__name__}) cannot keep documents of one sequence apart",
                hint="leave documents out of data.train, or take another attention",
            )
