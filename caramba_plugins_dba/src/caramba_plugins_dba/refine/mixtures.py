"""The value latent by least squares on the teacher's output.

The closed form of the start weighs each head by itself and reads the latent through the teacher's output projection.
Here the output is ``sum_h O_h U_g(h) N ybar_h``: ``ybar_h`` is what the student's attention makes of all heads' values,
``N`` ``[r, V]`` makes the latent of them, ``U_g`` ``[d, r]`` expands it for a key/value head, ``O_h`` ``[D, d]`` is the
output projection.  Latents of several groups stand side by side in ``N``, and ``U_g`` is zero in the columns of the
others.  With two of the three fixed the third is a linear regression; they are solved in turn, with a ridge
towards where they start.  Heads that repeat or cancel each other are seen through their joint second moment.

A joint latent is also what keys are read from.  It stays as it is: the latent itself takes the place of the values,
``N`` is the identity, and the other two are solved for.

Axes: B batch, T tokens, N sampled queries, H query heads, G key/value heads, m = H/G, d head width, r width of the
latent, D width of the residual stream, V = G d values of all heads, or r of a joint latent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from caramba_plugins_upcycle.transplant import Example
from torch import Tensor

from caramba_plugins_dba.module import DecoupledBottleneckModule
from caramba_plugins_dba.refine.conjugate import ridge_solution

__all__ = ["ValueFit"]


class ValueFit:
    """Moments of one module's mixtures, centred; :meth:`solve` refits and writes the module's values and output."""

    def __init__(
        self,
        module: DecoupledBottleneckModule,
        weights: Mapping[str, Tensor],
        examples: Iterable[Example],
        *,
        queries: int,
        seed: int = 0,
    ) -> None:
        """``queries`` tokens a window are looked at.

        Their second moments are multiplied out in float32, a batch at a time, and added up in float64: the errors that
        this leaves are far below those of sampling, and below any ridge.
        """
        config = module.config
        assert config.v_layout == "latent"
        self.module = module
        self.joint = config.latent == "joint"
        self.source, self.bias = weights["v_proj"], weights.get("v_bias")
        if self.joint:
            self.source, self.bias = module.v_proj.clone(), None
        self.heads, self.groups, self.values = config.n_heads, config.n_kv_heads, len(self.source)
        self.device = torch.device("cpu") if module.o_proj.device.type == "mps" else module.o_proj.device
        size = self.heads * self.values
        gathered = torch.zeros(
            size + module.width + 1, size + module.width + 1, dtype=torch.float64, device=self.device
        )
        generator = torch.Generator().manual_seed(seed)
        for example in examples:
            rows = torch.randperm(example.x.shape[1], generator=generator)[:queries].sort().values.to(example.x.device)
            mixed = self._mixed(example, rows).flatten(2)
            both = torch.cat([mixed, example.output[:, rows], torch.ones_like(mixed[..., :1])], dim=-1).flatten(0, 1)
            gathered += (both.T @ both).to(self.device, torch.float64)
        gathered /= gathered[-1, -1].clone()
        mean = gathered[-1, :-1]
        centred = gathered[:-1, :-1] - torch.outer(mean, mean)
        self.mixed_mean, self.output_mean = mean[:size], mean[size:]
        self.spread, self.wanted = centred[:size, :size], centred[size:, :size]  # [H V, H V], [D, H V]
        self.energy = float(centred[size:, size:].diagonal().sum())

    def _mixed(self, example: Example, rows: Tensor) -> Tensor:
        """What the module's attention makes of all of the teacher's values, or of the latent: ``[B, N, H, V]``."""
        x = example.x
        values = F.linear(x, self.source.to(x), None if self.bias is None else self.bias.to(x))
        share = self.module.probabilities(x, example.positions, rows)
        return (share @ values.unsqueeze(1).to(share)).transpose(1, 2)

    def solve(self, *, rounds: int, iterations: int, ridge: float) -> dict[str, float]:
        """Alternate; returns the missed share of the output's variance before and after."""
        module = self.module
        teacher = self.source.to(self.device, torch.float64)
        down = torch.eye(self.values).to(teacher)
        if not self.joint:
            down = torch.linalg.lstsq(teacher.T, module.v_proj.to(self.device, torch.float64).T).solution.T
        parts, rank = module.config.groups, module.config.v_dim // module.config.groups
        own = torch.block_diag(*torch.ones(parts, self.groups // parts, rank, device=self.device))
        self.own = own.double()[:, None]  # [G, 1, r]: the columns of a key/value head's latent
        up = module.v_up_proj.to(self.device, torch.float64).view(self.groups, -1, rank).repeat(1, 1, parts) * self.own
        out = module.o_proj.to(self.device, torch.float64).view(module.width, self.heads, -1).transpose(0, 1)
        before = self._missed(out, up, down)
        for _ in range(rounds):
            out = self._fit_out(out, up, down, ridge)
            if not self.joint:
                down = self._fit_down(out, up, down, ridge, iterations)
            up = self._fit_up(out, up, down, ridge, iterations)
        out = self._fit_out(out, up, down, ridge)
        self._write(out, up, down)
        return {"before": before, "after": self._missed(out, up, down)}

    def _each(self, up: Tensor) -> Tensor:
        """The expansion that each query head reads: ``[H, d, r]``."""
        return up.repeat_interleave(self.heads // self.groups, dim=0)

    def _whole(self, out: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """What the output reads of every head's mixture: ``[D, H V]``."""
        return (out @ self._each(up) @ down).transpose(0, 1).flatten(1)

    def _by_head(self, whole: Tensor) -> Tensor:
        """``[D, H V] -> [H, D, V]``."""
        return whole.view(len(whole), self.heads, self.values).transpose(0, 1)

    def _missed(self, out: Tensor, up: Tensor, down: Tensor) -> float:
        """Variance of what the output misses, over the output's."""
        whole = self._whole(out, up, down)
        return (self.energy + float((whole * (whole @ self.spread - 2 * self.wanted)).sum())) / self.energy

    def _own(self) -> Tensor:
        """Second moment of one head's mixture, averaged over heads: ``[V, V]``."""
        blocks = self.spread.view(self.heads, self.values, self.heads, self.values)
        return blocks.diagonal(dim1=0, dim2=2).mean(-1)

    def _fit_out(self, out: Tensor, up: Tensor, down: Tensor, ridge: float) -> Tensor:
        """Regression of the output on what all heads read."""
        width = out.shape[-1]
        reads = self._each(up) @ down  # [H, d, V]
        blocks = self.spread.view(self.heads, self.values, self.heads, self.values)
        second = torch.einsum("hdu,hugv,gev->hdge", reads, blocks, reads).reshape(self.heads * width, -1)
        cross = (self._by_head(self.wanted) @ reads.transpose(1, 2)).transpose(0, 1).flatten(1)  # [D, H d]
        strength = ridge * second.diagonal().mean()
        eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
        start = out.transpose(0, 1).flatten(1)
        solved: Tensor = torch.linalg.solve(second + strength * eye, (cross + strength * start).T).T
        return solved.view(-1, self.heads, width).transpose(0, 1)

    def _fit_down(self, out: Tensor, up: Tensor, down: Tensor, ridge: float, iterations: int) -> Tensor:
        """What makes the latent."""
        reads = out @ self._each(up)  # [H, D, r]
        second = torch.einsum("hdr,gds->hgrs", reads, reads)
        beside = self.spread.view(self.heads, self.values, -1)  # [H, V, H V]

        def apply(guess: Tensor) -> Tensor:
            seen = (guess @ beside).view(self.heads, len(guess), self.heads, self.values)
            total: Tensor = torch.einsum("hgrs,gshv->rv", second, seen)
            return total

        return ridge_solution(
            apply,
            torch.einsum("hdr,hdv->rv", reads, self._by_head(self.wanted)),
            down,
            second.diagonal().sum(-1),
            self._own(),
            ridge=ridge,
            iterations=iterations,
        )

    def _fit_up(self, out: Tensor, up: Tensor, down: Tensor, ridge: float, iterations: int) -> Tensor:
        """What expands the latent."""
        second = torch.einsum("hde,gdf->hgef", out, out)
        blocks = self.spread.view(self.heads, self.values, self.heads, self.values)
        latent = torch.einsum("rv,gvhw,sw->ghrs", down, blocks, down)

        def apply(guess: Tensor) -> Tensor:
            each = self._each(guess.view_as(up))
            return self._by_group(torch.einsum("hgef,gfr,ghrs->hes", second, each, latent))

        wanted = out.transpose(1, 2) @ self._by_head(self.wanted) @ down.T
        rows = second.diagonal().permute(2, 0, 1).view(self.groups, -1, *out.shape[-1:] * 2).sum(1)
        joined = ridge_solution(
            apply,
            self._by_group(wanted),
            up.flatten(0, 1),
            torch.block_diag(*rows),
            down @ self._own() @ down.T,
            ridge=ridge,
            iterations=iterations,
            mask=None if self.module.config.groups == 1 else self.own.expand_as(up).flatten(0, 1),
        )
        return joined.view_as(up)

    def _by_group(self, each: Tensor) -> Tensor:
        """Sums over the query heads of each key/value head: ``[H, d, r] -> [G d, r]``."""
        return each.view(self.groups, -1, *each.shape[1:]).sum(1).flatten(0, 1)

    def _write(self, out: Tensor, up: Tensor, down: Tensor) -> None:
        """Weights, and the bias that puts the output's mean right."""
        module, config = self.module, self.module.config
        if not self.joint:
            module.v_proj.copy_(down @ self.source.to(down))
        module.v_up_proj.copy_((up * self.own).unflatten(-1, (config.groups, -1)).sum(-2).flatten(0, 1))
        module.o_proj.copy_(out.transpose(0, 1).flatten(1))
        whole = self._whole(out, up, down)
        offset = self.output_mean - whole @ self.mixed_mean
        if self.bias is not None:
            offset = offset + whole @ self.bias.to(down).repeat(self.heads)
        if config.v_bias:
            module.v_bias.zero_()
        if config.o_bias:
            module.o_bias.copy_(offset)
