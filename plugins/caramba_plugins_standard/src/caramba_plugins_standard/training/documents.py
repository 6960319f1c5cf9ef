"""Documents that share a sequence: attention, positions and loss stay within each, as if it stood alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from caramba_core.components import Attention
from caramba_core.errors import InputError
from caramba_core.graph import Graph
from caramba_core.nn.frame import Frame, Taps
from caramba_core.nn.language_model import LanguageModel

__all__ = ["PackedFrame", "packed_frame", "require_documents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFrame(Frame):
    """The frame of sequences that hold several documents each, without a cache.

    ``documents``, int64 ``[B, T]``, says which document a token is of: no token sees another one's.
    """

    documents: Tensor

    def hidden_keys(self, before: int, context: int) -> Tensor | None:
        """Tokens of other documents: bool ``[B, T, T]``."""
        assert before == 0 and context == self.documents.shape[1], "documents are packed in passes without a cache"
        return self.documents[:, :, None] != self.documents[:, None]


def packed_frame(model: LanguageModel, tokens: Tensor, begins: Tensor | None, *, taps: Taps | None = None) -> Frame:
    """The frame of tokens ``[B, T]``; an ordinary one without ``begins``, bool ``[B, T]``: where documents begin.

    Raises :class:`InputError` where the model has an attention that cannot keep to its document.
    """
    if begins is None:
        return Frame.of(tokens, taps=taps)
    require_documents(model.graph)
    place = torch.arange(tokens.shape[1], device=tokens.device)
    begin = (begins * place).cummax(1).values
    return PackedFrame(positions=place - begin, documents=begin, taps=taps)


def require_documents(graph: Graph) -> None:
    """Raise :class:`InputError` for a model with an attention that cannot keep to its document."""
    for name, node in graph.attentions().items():
        assert isinstance(node.config, Attention)
        if not node.config.takes_documents:
            raise InputError(
                f"{name} ({type(node.config).__name__}) cannot keep documents of one sequence apart",
                hint="leave documents out of data.train, or take another attention",
            )
