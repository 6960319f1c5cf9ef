"""DBA in torch: one fused call for training and prefill, absorbed projections for decoding.

Axes: B batch, T tokens of this pass, S tokens in the cache, H query heads, G key/value heads, m = H/G query heads a
key/value head, n kept rotary pairs, c width of one head's semantic query, r width of the value latent, d head width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule
from caramba_core.nn.rotary import Rotary, cos_sin, rotate
from caramba_plugins_dba.attention import DecoupledBottleneckAttention

__all__ = ["DecoupledBottleneckModule"]


class DecoupledBottleneckModule(ComponentModule):
    """``[B, T, D] -> [B, T, D]``.

    ``rotary`` has the frequencies of all the teacher's pairs, after any scaling; ``pairs`` ``[G, n]``, stored in
    checkpoints, says which of them each key/value head keeps.
    """

    config: DecoupledBottleneckAttention
    pairs: Tensor
    q_geo_proj: Tensor
    q_sem_proj: Tensor
    k_geo_proj: Tensor
    k_sem_proj: Tensor
    v_proj: Tensor
    v_up_proj: Tensor
    o_proj: Tensor
    q_geo_bias: Tensor
    q_sem_bias: Tensor
    k_geo_bias: Tensor
    v_bias: Tensor
    o_bias: Tensor

    def __init__(self, config: DecoupledBottleneckAttention, width: int) -> None:
        super().__init__(config, width)
        if config.pairs:
            assert config.rope is not None
            self.rotary = Rotary(config.rope, config.head_dim)

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return F.linear(self.mix(x, frame), self.o_proj, self._optional("o_bias"))

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, H * v_width]``."""
        queries, keys = self.queries_and_keys(x, frame.positions)
        values = F.linear(x, self.v_proj)
        if self.config.v_layout == "per_head":
            values = self._groups(values)
        if frame.cache is None:
            return self._fused(queries, keys, values)
        layer = frame.cache.layer(self.site, frame.application)
        before = layer.length
        cached = layer.extend(v=values, **keys)
        if before == 0:
            return self._fused(queries, keys, values)
        return self._absorbed(queries, cached, before)

    def _optional(self, name: str) -> Tensor | None:
        tensor: Tensor | None = getattr(self, name, None)
        return tensor

    def queries_and_keys(self, x: Tensor, positions: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Queries ``[B, G, m, T, w]`` and keys as they are cached, both by the name of the cached key.

        ``k_geo``: rotated, keys ``[B, T, G, 2n]``; ``k_sem``: keys ``[B, T, c]`` or ``[B, T, G, c]``.
        """
        config = self.config
        queries, keys = {}, {}
        if config.pairs:
            cos, sin = cos_sin(self.rotary.frequencies[self.pairs], positions, scaling=self.rotary.scaling)
            query = self._heads(F.linear(x, self.q_geo_proj, self._optional("q_geo_bias")))
            queries["k_geo"] = rotate(query, cos.unsqueeze(-3), sin.unsqueeze(-3))
            key = F.linear(x, self.k_geo_proj, self._optional("k_geo_bias"))
            keys["k_geo"] = rotate(self._groups(key).transpose(1, 2), cos, sin).transpose(1, 2)
        if config.sem_dim:
            queries["k_sem"] = self._heads(F.linear(x, self.q_sem_proj, self._optional("q_sem_bias")))
            key = F.linear(x, self.k_sem_proj)
            keys["k_sem"] = key if config.k_layout == "shared" else self._groups(key)
        return queries, keys

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, T, H w] -> [B, G, m, T, w]``."""
        batch, tokens, _ = x.shape
        groups = self.config.n_kv_heads
        return x.view(batch, tokens, groups, self.config.n_heads // groups, -1).permute(0, 2, 3, 1, 4)

    def _groups(self, x: Tensor) -> Tensor:
        """``[B, T, G w] -> [B, T, G, w]``."""
        return x.view(*x.shape[:2], self.config.n_kv_heads, -1)

    def _fused(self, queries: Mapping[str, Tensor], keys: Mapping[str, Tensor], values: Tensor) -> Tensor:
        """Causal attention among the tokens of this pass, in one call.

        Queries, keys and values are padded with zeros to one width in flight: with unequal ones the flash kernels step
        back to a path that is several times slower.  Nothing padded is cached.
        """
        config = self.config
        if config.v_layout == "latent":
            values = self._groups(F.linear(values, self.v_up_proj))
        if (bias := self._optional("v_bias")) is not None:
            values = values + bias.view(config.n_kv_heads, -1)
        each_head = [k.unsqueeze(2).expand(-1, -1, config.n_kv_heads, -1) if k.dim() == 3 else k for k in keys.values()]
        q = _padded(torch.cat(tuple(queries.values()), dim=-1), config.fused_width).flatten(1, 2)
        k = _padded(torch.cat(each_head, dim=-1), config.fused_width).transpose(1, 2)
        v = _padded(values, config.fused_width).transpose(1, 2)
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=config.multiplier, enable_gqa=config.n_heads != config.n_kv_heads
        )
        return y.transpose(1, 2)[..., : config.v_width].flatten(2)

    def probabilities(self, x: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """Spelled out, for measuring: the attention of the tokens ``rows`` ``[N]`` of ``x``: ``[B, H, N, T]``."""
        queries, keys = self.queries_and_keys(x, positions)
        scores = self._scores({name: query[..., rows, :] for name, query in queries.items()}, keys)
        ahead = torch.arange(x.shape[1], device=x.device) > rows[:, None]
        return scores.masked_fill(ahead, -torch.inf).softmax(dim=-1).flatten(1, 2)

    def _scores(self, queries: Mapping[str, Tensor], keys: Mapping[str, Tensor]) -> Tensor:
        """``[B, G, m, T, S]`` of queries with keys as they are cached; at least float32."""
        products = []
        for name, query in queries.items():
            key = keys[name]
            if key.dim() == 3:  # one latent [B, S, c] for all heads
                products.append((query.flatten(1, 3) @ key.transpose(1, 2)).view(*query.shape[:-1], -1))
            else:  # [B, S, G, w]
                products.append((query.flatten(2, 3) @ key.permute(0, 2, 3, 1)).view(*query.shape[:-1], -1))
        scores = products[0] if len(products) == 1 else products[0] + products[1]
        return scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.config.multiplier

    def _absorbed(self, queries: Mapping[str, Tensor], cached: Mapping[str, Tensor], before: int) -> Tensor:
        """Attention to a compressed cache of ``before`` earlier tokens and this pass's, which is never expanded.

        Queries meet the cached keys as they are, probabilities mix the value latents as they are, and only the mixture
        is expanded, once a head.
        """
        config = self.config
        groups = config.n_kv_heads
        scores = self._scores(queries, cached)
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(before + 1)
        value = cached["v"]
        probabilities = scores.masked_fill(ahead, -torch.inf).softmax(dim=-1).to(value.dtype)
        if config.v_layout == "latent":  # [B, S, r]
            latent = (probabilities.flatten(1, 3) @ value).view(*scores.shape[:-1], -1)
            y = latent @ self.v_up_proj.view(groups, 1, config.head_dim, -1).transpose(-1, -2)
        else:  # [B, S, G, v_width]
            y = (probabilities.flatten(2, 3) @ value.transpose(1, 2)).view(*scores.shape[:-1], -1)
        if (bias := self._optional("v_bias")) is not None:
            y = y + bias.view(groups, 1, 1, -1)
        return y.permute(0, 3, 1, 2, 4).flatten(2)


def _padded(x: Tensor, width: int) -> Tensor:
    """Zeros at the end of the last axis up to ``width``."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))
