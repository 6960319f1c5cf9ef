"""What others do to a teacher's cache without training it, computed over whole sequences for ``bench/kinds.py``.

A :class:`Rival` takes the place of the fused call of every attention of a teacher.  It attends as decoding token by
token would with the cache that it keeps, and says how many bytes that cache has, in bfloat16 where nothing is rounded.
Each is the published rule, as far as its docstring says; none of them is a component of caramba.

Axes: B batch, H query heads, G key/value heads, T tokens, d head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from caramba_plugins_standard.gqa_module import GroupedQueryAttentionModule, visible
from caramba_plugins_standard.rotary import rotate
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right

from caramba_core.graph import local_name
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_core.nn.module import linear

Turn = Callable[[Tensor], Tensor]
"""Rotation of queries or keys ``[B, ?, T, d]`` by their positions."""

FULL = 2
"""Bytes of a value that is not rounded."""

_SCALES = 4
"""Bytes of the step and the least value of a block."""


class Rival(ABC):
    """An attention with a cache of its own, over queries ``[B, H, T, d]``, keys and values ``[B, G, T, d]``."""

    @abstractmethod
    def attend(self, site: str, query: Tensor, key: Tensor, value: Tensor, turn: Turn, scale: float) -> Tensor:
        """What the output projection reads of each head, ``[B, H, T, d]``; queries and keys are not rotated yet."""

    @abstractmethod
    def bytes(self, context: int, groups: int, width: int) -> float:
        """Bytes of a layer's cache that holds ``context`` tokens, at its largest."""


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Softmax attention in one fused call; causal without a mask."""
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


class Window(Rival):
    """The first tokens and the last ones: StreamingLLM (arXiv 2309.17453), positions as they were.

    ``share`` of the context is kept, ``sinks`` of it from the beginning.
    """

    def __init__(self, share: float, sinks: int = 4) -> None:
        self.share, self.sinks = share, sinks

    def attend(self, site: str, query: Tensor, key: Tensor, value: Tensor, turn: Turn, scale: float) -> Tensor:
        """A fused call with a mask."""
        context = key.shape[2]
        mask = visible(context, context, self._kept(context) - self.sinks, key.device)
        mask[:, : self.sinks] |= visible(context, context, None, key.device)[:, : self.sinks]
        return attention(turn(query), turn(key), value, scale, mask)

    def _kept(self, context: int) -> int:
        return max(round(self.share * context), self.sinks + 1)

    def bytes(self, context: int, groups: int, width: int) -> float:
        """Sinks and window."""
        return 2 * FULL * groups * width * min(self._kept(context), context)


class Rounded(Rival):
    """Keys and values in few bits behind a part in full that grows to ``residual`` tokens, and is then rounded.

    With ``by_channel=False`` blocks are of neighbouring values of a token, as in transformers' ``QuantizedCache`` with
    quanto (``axis_key=0``, ``q_group_size=64``, ``residual_length=128``); with ``by_channel=True`` keys are rounded
    over ``block`` tokens of a channel and values over ``block`` values of a token, as in KIVI (arXiv 2402.02750).
    """

    def __init__(self, bits: int, block: int, residual: int = 128, *, by_channel: bool = False) -> None:
        assert not by_channel or residual % block == 0, "blocks of tokens are rounded whole"
        self.bits, self.block, self.residual, self.by_channel = bits, block, residual, by_channel

    def attend(self, site: str, query: Tensor, key: Tensor, value: Tensor, turn: Turn, scale: float) -> Tensor:
        """A fused call for every ``residual`` queries: rounded keys before them, their own in full."""
        query, key = turn(query), turn(key)
        context = key.shape[2]
        whole = context // self.residual * self.residual  # what follows is never rounded
        old_key, old_value = key[:, :, :whole], rounded(value[:, :, :whole], self.bits, self.block)
        if self.by_channel:
            old_key = rounded(old_key.transpose(2, 3), self.bits, self.block).transpose(2, 3)
        else:
            old_key = rounded(old_key, self.bits, self.block)
        parts = []
        for first in range(0, context, self.residual):
            now = slice(first, first + self.residual)
            keys = torch.cat([old_key[:, :, :first], key[:, :, now]], dim=2)
            values = torch.cat([old_value[:, :, :first], value[:, :, now]], dim=2)
            part = query[:, :, now]
            share = query.shape[1] // key.shape[1]
            parts.append(
                F.scaled_dot_product_attention(
                    part,
                    keys.repeat_interleave(share, 1),
                    values.repeat_interleave(share, 1),
                    attn_mask=causal_lower_right(part.shape[2], keys.shape[2]),
                    scale=scale,
                )
            )
        return torch.cat(parts, dim=2)

    def bytes(self, context: int, groups: int, width: int) -> float:
        """Codes with their steps and least values, and the part in full when it is full."""
        near = min(self.residual, context)
        each = 2 * groups * width
        return each * ((context - near) * (self.bits / 8 + _SCALES / min(self.block, width)) + near * FULL)


def rounded(values: Tensor, bits: int, block: int) -> Tensor:
    """Values ``[..., C]`` as blocks of ``block`` neighbours give them back, step and least value in float16."""
    size = values.shape[-1]
    if not values.numel():
        return values
    block = min(block, size)
    assert size % block == 0, f"{size} values are no blocks of {block}"
    blocks = values.unflatten(-1, (-1, block)).float()
    least = blocks.amin(-1, keepdim=True).half().float()
    top = 2**bits - 1
    step = ((blocks.amax(-1, keepdim=True) - least) / top).half().float()
    codes = ((blocks - least) / torch.where(step > 0, step, 1.0)).round().clamp(0, top)
    back: Tensor = (least + step * codes).flatten(-2).to(values.dtype)
    return back


class Evicting(Rival):
    """A cache of at most ``share`` of the context, from which tokens are dropped by a score, ``chunk`` at a time.

    Each key/value head drops for itself, and never the last ``chunk`` tokens.  Scores are kvpress's: ``observed`` is
    the mean attention that a token got from the queries that saw it (H2O, arXiv 2306.14048), ``snapkv`` what it gets
    from the last ``chunk`` queries, averaged over five neighbours (arXiv 2404.14469), ``knorm`` the key's norm, large
    ones being dropped (arXiv 2406.11430).  kvpress drops once, behind the prompt; here tokens are dropped as they come.
    """

    def __init__(self, share: float, score: Literal["observed", "snapkv", "knorm"], chunk: int = 64) -> None:
        self.share, self.score, self.chunk = share, score, chunk

    def attend(self, site: str, query: Tensor, key: Tensor, value: Tensor, turn: Turn, scale: float) -> Tensor:
        """Chunk after chunk: attention to what is kept and to the chunk itself, then the dropping."""
        query, key = turn(query), turn(key)
        batch, groups, context, width = key.shape
        grouped = query.unflatten(1, (groups, -1))  # [B, G, m, T, d]
        kept = torch.empty(batch, groups, 0, dtype=torch.long, device=key.device)
        mass = torch.empty(batch, groups, 0, device=key.device)
        parts = []
        for first in range(0, context, self.chunk):
            now = torch.arange(first, min(first + self.chunk, context), device=key.device)
            kept = torch.cat([kept, now.expand(batch, groups, -1)], dim=-1)
            index = kept[..., None].expand(-1, -1, -1, width)
            keys, values = key.gather(2, index), value.gather(2, index)
            scores = grouped[:, :, :, now] @ keys[:, :, None].transpose(3, 4) * scale
            hidden = kept[:, :, None, None, :] > now[:, None]
            weights = scores.float().masked_fill(hidden, float("-inf")).softmax(-1)
            parts.append((weights.to(values.dtype) @ values[:, :, None]).flatten(1, 2))
            got = weights.mean(2).sum(2)  # [B, G, K]
            mass = torch.cat([mass, mass.new_zeros(batch, groups, len(now))], dim=-1) + got
            keeps = self._capacity(context) - min(self.chunk, context - first - len(now))
            if kept.shape[-1] > keeps and first + self.chunk < context:
                worth = self._worth(mass, got, kept, keys, first + len(now))
                worth[..., -len(now) :] = float("inf")
                order = worth.topk(keeps, dim=-1).indices.sort(-1).values
                kept, mass = kept.gather(-1, order), mass.gather(-1, order)
        return torch.cat(parts, dim=2)

    def _worth(self, mass: Tensor, got: Tensor, kept: Tensor, keys: Tensor, seen: int) -> Tensor:
        """``[B, G, K]``, larger where a token is worth more."""
        if self.score == "knorm":
            norm: Tensor = torch.linalg.vector_norm(keys.float(), dim=-1)
            return -norm
        if self.score == "snapkv":
            pooled: Tensor = F.avg_pool1d(got, 5, stride=1, padding=2)
            return pooled
        return mass / (seen - kept)

    def _capacity(self, context: int) -> int:
        return max(round(self.share * context), 2 * self.chunk)

    def bytes(self, context: int, groups: int, width: int) -> float:
        """What is kept and a chunk that comes."""
        return 2 * FULL * groups * width * min(self._capacity(context), context)


class TransMLA(Rival):
    """TransMLA's start (arXiv 2502.07864) from moments of calibration tokens, without its training and FreqFold.

    Keys of all heads are turned, pair by pair of rotary dimensions, into principal components across heads (RoRoPE),
    which rotation does not disturb.  The first ``turned`` components keep their rotation, the others lose it; they and
    the values, brought to one norm, share a latent of ``rank`` principal components.
    """

    def __init__(self, rank: int, turned: int = 1) -> None:
        self.rank, self.turned = rank, turned
        self.mixing: dict[str, Tensor] = {}
        self.latent: dict[str, tuple[Tensor, Tensor]] = {}

    def prepare(self, site: str, key: Tensor, value: Tensor) -> None:
        """Principal components of a layer, from keys before rotation and values ``[N, G, d]``."""
        key, value = key.double(), value.double()
        pairs = key.unflatten(-1, (2, -1))  # [N, G, 2, P]
        second = torch.einsum("ngrp,nhrp->pgh", pairs, pairs)
        mixing = torch.linalg.eigh(second).eigenvectors.flip(-1)  # [P, G, component], the largest first
        rest = torch.einsum("pgj,ngrp->njrp", mixing, pairs)[:, self.turned :].flatten(1)
        value = value.flatten(1)
        balance = 1.0
        if rest.shape[1]:
            balance = float(rest.norm(dim=-1).mean() / value.norm(dim=-1).mean())
        joint = torch.cat([rest / balance, value], dim=-1)
        basis = torch.linalg.eigh(joint.T @ joint).eigenvectors.flip(-1)[:, : self.rank]  # [C, r]
        weight = torch.cat([torch.full((rest.shape[1],), balance), torch.ones(value.shape[1])]).to(basis)
        self.mixing[site] = mixing.float()
        self.latent[site] = ((basis / weight[:, None]).float(), (basis * weight[:, None]).float())

    def attend(self, site: str, query: Tensor, key: Tensor, value: Tensor, turn: Turn, scale: float) -> Tensor:
        """Queries of each head meet the components of all heads' keys."""
        groups = key.shape[1]
        mixing, (down, up) = self.mixing[site].to(key), (part.to(key) for part in self.latent[site])
        components = torch.einsum("pgj,bgtrp->bjtrp", mixing, key.unflatten(-1, (2, -1))).flatten(-2)
        heads = torch.arange(query.shape[1], device=key.device) // (query.shape[1] // groups)
        asked = torch.einsum("phj,bhtrp->bhjtrp", mixing[:, heads], query.unflatten(-1, (2, -1))).flatten(-2)
        moved = groups - self.turned
        joint = torch.cat(
            [components[:, self.turned :].transpose(1, 2).flatten(2), value.transpose(1, 2).flatten(2)], -1
        )
        back = joint @ down @ up.T  # [B, T, C]
        rest, values = back.split([moved * key.shape[-1], groups * key.shape[-1]], dim=-1)
        turned_key = [turn(components[:, at : at + 1]) for at in range(self.turned)]
        turned_query = [turn(asked[:, :, at]) for at in range(self.turned)]
        keys = torch.cat([*turned_key, rest[:, None]], dim=-1)  # [B, 1, T, G d]
        queries = torch.cat([*turned_query, asked[:, :, self.turned :].transpose(2, 3).flatten(3)], dim=-1)
        values = values.unflatten(-1, (groups, -1)).transpose(1, 2)
        return attention(queries, keys.expand(-1, groups, -1, -1), values, scale)

    def bytes(self, context: int, groups: int, width: int) -> float:
        """Rotary key and latent."""
        return FULL * context * (self.turned * width + self.rank)


class Replaced(nn.Module):
    """A teacher's attention whose fused call is a rival's."""

    def __init__(self, site: str, layer: GroupedQueryAttentionModule, rival: Rival) -> None:
        super().__init__()
        self.site, self.layer, self.rival = site, layer, rival

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        assert frame.cache is None and self.layer.rotary is not None
        query, key, value = self.layer.project(x)
        cos, sin = self.layer.rotary(frame.positions)
        mixed = self.rival.attend(
            self.site, query, key, value, lambda one: rotate(one, cos, sin), self.layer.multiplier
        )
        return linear(mixed.transpose(1, 2).flatten(2), self.layer.o_proj, self.layer.o_bias)


class _Gathering(Rival):
    """Plain attention that hands on the keys and values of every layer."""

    def __init__(self, rival: TransMLA) -> None:
        self.rival = rival

    def attend(self, site: str, query: Tensor, key: Tensor, value: Tensor, turn: Turn, scale: float) -> Tensor:
        """As the teacher does."""
        self.rival.prepare(site, *(part.transpose(1, 2).flatten(0, 1) for part in (key, value)))
        return attention(turn(query), turn(key), value, scale)

    def bytes(self, context: int, groups: int, width: int) -> float:
        """Everything."""
        return 2 * FULL * context * groups * width


def attentions(model: LanguageModel) -> dict[str, GroupedQueryAttentionModule]:
    """The attentions of a teacher by their names, also where rivals have taken their places."""
    found: dict[str, GroupedQueryAttentionModule] = {}
    for name in map(local_name, model.graph.attentions()):
        module: Any = model.get_submodule(name)
        layer = module.layer if isinstance(module, Replaced) else module
        assert isinstance(layer, GroupedQueryAttentionModule) and layer.window is None, f"{name} is no plain attention"
        found[name] = layer
    return found


def put_in(model: LanguageModel, rival: Rival, calibration: Tensor | None = None) -> LanguageModel:
    """The teacher with the rival in every attention, in place; ``calibration`` are tokens ``[B, T]`` that it sees."""
    layers = attentions(model)
    if isinstance(rival, TransMLA):
        assert calibration is not None, "the rival reads calibration tokens"
        _replace(model, layers, _Gathering(rival))
        with torch.inference_mode():
            model.hidden(calibration)
    _replace(model, layers, rival)
    return model


def bytes_of(model: LanguageModel, rival: Rival, context: int) -> float:
    """Cached bytes per token of all layers."""
    layers = attentions(model).values()
    return sum(rival.bytes(context, layer.n_kv_heads, layer.head_dim) for layer in layers) / context


def _replace(model: LanguageModel, layers: Mapping[str, GroupedQueryAttentionModule], rival: Rival) -> None:
    for name, layer in layers.items():
        model.set_submodule(name, Replaced(name, layer, rival))
