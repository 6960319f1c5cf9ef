"""Queries and keys by least squares on the teacher's attention.

For probabilities ``p`` of the teacher and an error ``e(s)`` of the logits, the divergence of the two attentions is
``1/2 Var_{s ~ p} e(s)`` to second order, and a constant in ``e`` costs nothing.  With keys fixed this is a quadratic
in each head's query projection, with queries fixed one in the key projections.  Both are solved in turn by conjugate
gradients, with a ridge towards where they start.  The student's logits are those of its own inputs, so that it also
makes up for what went wrong in the layers before.

Axes: G rotary keys (of key/value heads, or of groups), m query heads each, w = 2n + c width of queries and keys
(rotary, semantic), N sampled queries and T tokens of a calibration window, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from caramba_plugins_standard.probing import Probe
from caramba_plugins_standard.rotary import cos_sin, rotate
from caramba_plugins_upcycle.transplant import Example
from torch import Tensor

from caramba_plugins_dba.module import DecoupledBottleneckModule
from caramba_plugins_dba.refine.conjugate import ridge_solution

__all__ = ["LogitFit"]

_FRAME_QUERIES = 8
"""Queries a window that the mean covariance of keys is estimated from; it only preconditions."""


@dataclass(frozen=True, slots=True)
class _Window:
    """``x`` ``[T, D]``, sampled ``rows`` ``[N]``; the teacher's probabilities ``share`` and centred logits ``wanted``,
    both ``[G, m, N, T]``; ``cos`` and ``sin`` ``[G, T, n]``."""

    x: Tensor
    rows: Tensor
    share: Tensor
    wanted: Tensor
    cos: Tensor
    sin: Tensor


class LogitFit:
    """The least-squares problem of one module; :meth:`queries` and :meth:`keys` solve it in turn and write."""

    def __init__(
        self, module: DecoupledBottleneckModule, examples: Iterable[Example], *, queries: int, seed: int = 0
    ) -> None:
        self.module = module
        config = module.config
        whole = config.geo_layout == "shared"  # then keys of a group are one in all their parts
        self.groups, self.rotary, self.sem = config.geo_parts, 2 * config.pairs, config.sem_width
        self.shared = config.k_layout == "shared" and not whole
        generator = torch.Generator().manual_seed(seed)
        self.windows: list[_Window] = []
        for example in examples:
            probe = example.probe
            for index in range(example.x.shape[0]):
                self.windows.append(self._window(example.x[index], probe, index, queries, generator))
        self.count = sum(len(window.rows) for window in self.windows)
        assert self.count, "no calibration tokens"

    def _window(self, x: Tensor, probe: Probe, index: int, queries: int, generator: torch.Generator) -> _Window:
        rows = torch.randperm(x.shape[0], generator=generator)[:queries].sort().values.to(x.device)
        share = probe.probabilities[index][:, rows].view(self.groups, self._per_group, len(rows), -1)
        logits = share.log().masked_fill(share == 0, 0.0)
        if self.rotary:
            kept = self.module.rotary.frequencies[self.module.pairs]
            cos, sin = cos_sin(kept, probe.positions, scaling=self.module.rotary.scaling)
        else:
            cos = sin = x.new_zeros(self.groups, x.shape[0], 0)
        centred = logits - (share * logits).sum(-1, keepdim=True)
        return _Window(x.float(), rows, share, centred, cos.to(share), sin.to(share))

    # ------------------------------------------------------------------------------------------------ the forward side

    def _query(self, window: _Window, weight: Tensor) -> Tensor:
        """Rotated ``[G, m, N, w]`` of a weight ``[G, m, w, D]``."""
        flat = window.x[window.rows] @ weight.flatten(0, 2).T
        query = flat.view(len(window.rows), *weight.shape[:3]).permute(1, 2, 0, 3)
        return self._turn(query, window.cos[:, window.rows].unsqueeze(1), window.sin[:, window.rows].unsqueeze(1))

    def _key(self, window: _Window, weight: Tensor) -> Tensor:
        """Rotated ``[G, T, w]`` of a packed weight (see :meth:`_unpack`)."""
        geo, sem = self._unpack(weight)
        key = torch.cat([torch.einsum("td,gkd->gtk", window.x, part) for part in (geo, sem)], dim=-1)
        return self._turn(key, window.cos, window.sin)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.cat([rotate(x[..., : self.rotary], cos, sin), x[..., self.rotary :]], dim=-1)

    def _turn_back(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return torch.cat([rotate(x[..., : self.rotary], cos, -sin), x[..., self.rotary :]], dim=-1)

    def _unpack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary ``[G, 2n, D]`` and semantic ``[G, c, D]`` rows of ``[G 2n + sem_dim, D]``."""
        split = self.groups * self.rotary
        geo, sem = weight[:split], weight[split:]
        sem = sem.expand(self.groups, -1, -1) if self.shared else sem.view(self.groups, self.sem, -1)
        return geo.view(self.groups, self.rotary, weight.shape[-1]), sem

    def _pack(self, weight: Tensor) -> Tensor:
        """The adjoint of unpacking: ``[G, w, D]`` to ``[G 2n + sem_dim, D]``."""
        geo, sem = weight[:, : self.rotary], weight[:, self.rotary :]
        return torch.cat([geo.flatten(0, 1), sem.sum(0) if self.shared else sem.flatten(0, 1)])

    def _weighed(self, window: _Window, query: Tensor, key: Tensor) -> Tensor:
        """Centred and weighed logits ``[G, m, N, T]`` of a query and key."""
        logits = query @ key.unsqueeze(1).transpose(-1, -2) * self.module.config.multiplier
        return window.share * (logits - (window.share * logits).sum(-1, keepdim=True))

    # ------------------------------------------------------------------------------------------------ the two problems

    @torch.no_grad()
    def error(self) -> float:
        """Variance of the logits' error under attention, over that of the teacher's logits."""
        query_weight, key_weight = self._query_weight(), self._key_weight()
        error = total = 0.0
        for window in self.windows:
            query, key = self._query(window, query_weight), self._key(window, key_weight)
            query, key = query + self._query_bias(window), key + self._key_bias(window)
            weighed = self._weighed(window, query, key) - window.share * window.wanted
            error += float((weighed.square() / window.share.clamp_min(1e-20)).sum())
            total += float((window.share * window.wanted.square()).sum())
        return error / total

    def queries(self, *, ridge: float, iterations: int) -> None:
        """Refit every head's query projections; keys stay."""
        start = self._query_weight()
        keys = [self._key(window, self._key_weight()) + self._key_bias(window) for window in self.windows]

        def adjoint(errors: Iterable[Tensor]) -> Tensor:
            total = torch.zeros_like(start)
            for window, error, key in zip(self.windows, errors, keys, strict=True):
                back = error @ key.unsqueeze(1)
                cos, sin = window.cos[:, window.rows].unsqueeze(1), window.sin[:, window.rows].unsqueeze(1)
                total += self._turn_back(back, cos, sin).transpose(-1, -2) @ window.x[window.rows]
            return total * (self.module.config.multiplier / self.count)

        def errors(weight: Tensor) -> Iterable[Tensor]:
            for window, key in zip(self.windows, keys, strict=True):
                yield self._weighed(window, self._query(window, weight), key)

        rest = (
            window.share * window.wanted - self._weighed(window, self._query_bias(window), key)
            for window, key in zip(self.windows, keys, strict=True)
        )
        inputs = torch.cat([window.x[window.rows] for window in self.windows])
        solved = ridge_solution(
            lambda weight: adjoint(errors(weight)),
            adjoint(rest),
            start,
            self._mean_key_spread(keys),
            inputs.T @ inputs / self.count,
            ridge=ridge,
            iterations=iterations,
        )
        self._write("q_geo_proj", solved[:, :, : self.rotary].flatten(0, 2))
        self._write("q_sem_proj", solved[:, :, self.rotary :].flatten(0, 2))

    def keys(self, *, ridge: float, iterations: int) -> None:
        """Refit the key projections; queries stay."""
        start = self._key_weight()
        queries = [self._query(window, self._query_weight()) + self._query_bias(window) for window in self.windows]

        def adjoint(errors: Iterable[Tensor]) -> Tensor:
            total = torch.zeros_like(start)
            for window, error, query in zip(self.windows, errors, queries, strict=True):
                back = (error.transpose(-1, -2) @ query).sum(1)
                back = self._turn_back(back, window.cos, window.sin)
                total += self._pack(torch.einsum("gtk,td->gkd", back, window.x))
            return total * (self.module.config.multiplier / self.count)

        def errors(weight: Tensor) -> Iterable[Tensor]:
            for window, query in zip(self.windows, queries, strict=True):
                yield self._weighed(window, query, self._key(window, weight))

        rest = (
            window.share * window.wanted - self._weighed(window, query, self._key_bias(window))
            for window, query in zip(self.windows, queries, strict=True)
        )
        attended = [window.share.sum((0, 1, 2)) for window in self.windows]
        inputs = sum(
            ((window.x * weight[:, None]).T @ window.x for window, weight in zip(self.windows, attended, strict=True)),
            torch.zeros(start.shape[-1], start.shape[-1]).to(start),
        ) / sum(float(weight.sum()) for weight in attended)
        solved = ridge_solution(
            lambda weight: adjoint(errors(weight)),
            adjoint(rest),
            start,
            self._mean_query_energy(queries),
            inputs,
            ridge=ridge,
            iterations=iterations,
        )
        split = self.groups * self.rotary
        self._write("k_geo_proj", solved[:split])
        self._write("k_sem_proj", solved[split:])

    def _mean_key_spread(self, keys: Sequence[Tensor]) -> Tensor:
        """Covariance of keys under attention as the queries see it, turned to their positions: ``[G, m, w, w]``."""
        total: Tensor | float = 0.0
        seen = 0
        for window, key in zip(self.windows, keys, strict=True):
            for place in range(0, len(window.rows), max(1, len(window.rows) // _FRAME_QUERIES)):
                row = window.rows[place : place + 1]
                near = self._turn_back(key, window.cos[:, row], window.sin[:, row]).unsqueeze(1)
                share = window.share[:, :, place].unsqueeze(-1)
                mean = (share * near).sum(-2, keepdim=True)
                total = total + (share * near).transpose(-1, -2) @ near - mean.transpose(-1, -2) @ mean
                seen += 1
        assert isinstance(total, Tensor)
        return total * (self.module.config.multiplier**2 / seen)

    def _mean_query_energy(self, queries: Sequence[Tensor]) -> Tensor:
        """Second moment of queries over the packed rows of the keys; a rotary pair keeps its energy alone."""
        second = sum((q.transpose(-1, -2) @ q for q in queries), torch.zeros(()).to(queries[0])).sum(1)  # [G, w, w]
        energy = second[:, : self.rotary, : self.rotary].diagonal(dim1=-2, dim2=-1)
        energy = energy.view(self.groups, 2, self.rotary // 2).mean(1)
        sem = second[:, self.rotary :, self.rotary :]
        blocks = [torch.diag(energy.repeat(1, 2).flatten()), *([sem.sum(0)] if self.shared else sem.unbind())]
        joined: Tensor = torch.block_diag(*blocks)
        return joined * (self.module.config.multiplier**2 / self.count)

    # ------------------------------------------------------------------------------------------------ the module's side

    def _query_weight(self) -> Tensor:
        """``[G, m, w, D]``."""
        parts = [getattr(self.module, n).float() for n in ("q_geo_proj", "q_sem_proj") if hasattr(self.module, n)]
        return torch.cat([part.view(self.groups, self._per_group, -1, part.shape[-1]) for part in parts], dim=2)

    def _key_weight(self) -> Tensor:
        """``[G 2n + sem_dim, D]``."""
        return torch.cat(
            [getattr(self.module, n).float() for n in ("k_geo_proj", "k_sem_proj") if hasattr(self.module, n)]
        )

    @property
    def _per_group(self) -> int:
        return self.module.config.n_heads // self.groups

    def _query_bias(self, window: _Window) -> Tensor:
        """What biases add to the rotated queries: ``[G, m, N, w]``."""
        widths = {"q_geo_bias": self.rotary, "q_sem_bias": self.sem}
        parts = [
            getattr(self.module, name).float().view(self.groups, self._per_group, width)
            if hasattr(self.module, name)
            else window.x.new_zeros(self.groups, self._per_group, width)
            for name, width in widths.items()
        ]
        bias = torch.cat(parts, dim=-1).unsqueeze(2).expand(-1, -1, len(window.rows), -1)
        return self._turn(bias, window.cos[:, window.rows].unsqueeze(1), window.sin[:, window.rows].unsqueeze(1))

    def _key_bias(self, window: _Window) -> Tensor:
        """What biases add to the rotated keys: ``[G, T, w]``."""
        bias = window.x.new_zeros(self.groups, self.rotary + self.sem)
        if hasattr(self.module, "k_geo_bias"):
            geometric: Tensor = self.module.k_geo_bias
            bias[:, : self.rotary] = geometric.float().view(self.groups, -1)
        return self._turn(bias.unsqueeze(1).expand(-1, len(window.x), -1), window.cos, window.sin)

    def _write(self, name: str, value: Tensor) -> None:
        if hasattr(self.module, name):
            tensor: Tensor = getattr(self.module, name)
            tensor.copy_(value)
