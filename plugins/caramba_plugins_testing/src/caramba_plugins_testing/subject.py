"""A case, built: a whole small model around the component, with weights that are nowhere zero."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from caramba_plugins_standard.layers import LinearHead, TokenEmbedder
from caramba_plugins_standard.topologies import Stacked
from torch import Tensor

from caramba_core.components import Model
from caramba_core.graph import Graph, Node, local_name
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.cache import Cache
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.sequence import LayerSequence
from caramba_plugins_testing.case import Case, CheckFailed, require

__all__ = ["Subject", "difference", "graph_of", "inputs", "require_close"]

_VOCABULARY = 17


def graph_of(case: Case) -> Graph:
    """The component between an embedder and a head."""
    model = Model(
        embedder=TokenEmbedder(vocab_size=_VOCABULARY, d_model=case.width),
        topology=Stacked(layers=(case.config,)),
        head=LinearHead(),
    )
    return lower(model)


def inputs(case: Case, *, batch: int = 2, tokens: int | None = None, seed: int = 1) -> Tensor:
    """Random inputs of the component: float64 ``[B, T, D]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens or case.tokens, case.width, generator=generator, dtype=torch.float64)


def difference(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest value wanted."""
    scale = wanted.double().abs().max().item()
    return (found.double() - wanted.double()).abs().max().item() / (scale or 1.0)


def require_close(found: Tensor, wanted: Tensor, within: float, words: str, *, advice: str = "") -> None:
    """Raise :class:`CheckFailed` where tensors ``[B, T, D]`` differ by more than a part of the largest value wanted.

    ``words`` say what differs from what; how much and from which position on is added.
    """
    require(found.shape == wanted.shape, f"{words} in shape: {list(found.shape)} and {list(wanted.shape)}")
    error = difference(found, wanted)
    if not error <= within:
        off = (found.double() - wanted.double()).abs().amax(dim=(0, 2))
        first = [bool(one <= within * wanted.abs().max()) for one in off].index(False)
        said = f"{words} by {error:.1e} of the largest output (at most {within:.0e}), first at position {first}"
        raise CheckFailed(f"{said}: {advice}" if advice else said)


class Subject:
    """The component inside a model, called without the embedder and the head.

    Weights are drawn around their declared start, so that zero-initialized gates and offsets take part.
    """

    def __init__(self, case: Case, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        self.case = case
        self.graph = graph_of(case)
        self.model: LanguageModel = build(self.graph, dtype=dtype, seed=seed).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in self.parameters():
                spread = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_((noise * spread).to(parameter.dtype))

    def parameters(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        """The component's own parameters."""
        return [(n, p) for n, p in self.model.named_parameters() if not n.startswith(("embedder.", "head."))]

    def nodes(self) -> Iterable[Node]:
        """The component's own nodes."""
        return [node for node in self.graph.topology.walk() if not node.inline]

    def module(self) -> torch.nn.Module:
        """The module of a case that is one component."""
        (node,) = self.nodes()
        return self.model.get_submodule(local_name(node.name))

    def frame(self, x: Tensor, *, cache: Cache | None = None, shift: int = 0) -> Frame:
        """The frame of inputs ``[B, T, D]`` that follow what the cache holds."""
        start = shift + (0 if cache is None else cache.length)
        return Frame(positions=torch.arange(start, start + x.shape[1], device=x.device), cache=cache)

    def run(self, x: Tensor, frame: Frame | None = None) -> Tensor:
        """``[B, T, D] -> [B, T, D']``."""
        return LayerSequence.forward(self.model, x, frame or self.frame(x))

    @torch.no_grad()
    def decode(
        self, x: Tensor, split: Iterable[int], *, cache: Cache | None = None, starts: Tensor | None = None
    ) -> Tensor:
        """The same through a cache, in pieces of these lengths; ``starts`` ``[B]`` says where each sequence begins."""
        cache = cache or self.model.new_cache(x.shape[0])
        pieces = []
        for piece in torch.split(x, list(split), dim=1):
            pieces.append(self.run(piece, Frame.of(piece[..., 0], cache=cache, starts=starts)))
            cache.advance(piece.shape[1])
        return torch.cat(pieces, dim=1)
