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
from caramba_plugins_standard.mixtures import separator_of
from caramba_plugins_standard.training import TrainingContext

__all__ = ["PackedFrame", "packed_frame", "require_documents", "separator_in", "targets_within"]

NO_TARGET = -100
"""What ``torch.nn.functional.cross_entropy`` leaves out."""


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


def packed_frame(model: LanguageModel, tokens: Tensor, separator: int | None, *, taps: Taps | None = None) -> Frame:
    """The frame of tokens ``[B, T]`` in which ``separator`` ends a document; an ordinary one without a separator.

    Raises :class:`InputError` where the model has an attention that cannot keep to its document.
    """
    if separator is None:
        return Frame.of(tokens, taps=taps)
    require_documents(model.graph)
    first = torch.zeros_like(tokens)
    first[:, 1:] = tokens[:, :-1] == separator
    place = torch.arange(tokens.shape[1], device=tokens.device)
    begin = (first * place).cummax(1).values
    return PackedFrame(positions=place - begin, documents=begin, taps=taps)


def targets_within(tokens: Tensor, separator: int | None) -> Tensor:
    """The token after each of the first ``T`` of ``[B, T + 1]``; :data:`NO_TARGET` where another document begins."""
    targets = tokens[:, 1:]
    return targets if separator is None else targets.masked_fill(tokens[:, :-1] == separator, NO_TARGET)


def require_documents(graph: Graph) -> None:
    """Raise :class:`InputError` for a model with an attention that cannot keep to its document."""
    for name, node in graph.attentions().items():
        assert isinstance(node.config, Attention)
        if not node.config.takes_documents:
            raise InputError(
                f"{name} ({type(node.config).__name__}) cannot keep documents of one sequence apart",
                hint="leave documents out of data.train, or take another attention",
            )


def separator_in(context: TrainingContext) -> int | None:
    """The token that ends a document in a run's ``data.train``; ``None`` where windows are taken as they are."""
    return separator_of(context.shared.tokens("train"))
