"""MLA in torch: one fused call for training and prefill, absorbed projections for decoding.

Axes: B batch, T tokens of this pass, S tokens in the cache, H query heads, G key/value heads, m = H/G query heads a
key/value head, d head width, e width of the rotary key, r rank of the latent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from caramba_plugins_standard.decoding import CachedPart, attend_cached, attend_chunk, too_many_scores
from caramba_plugins_standard.rotary import Rotary, cos_sin, rotate
from caramba_plugins_standard.training.documents import PackedFrame
from torch import Tensor
from torch.nn import functional as F

from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule, linear
from caramba_plugins_mla.attention import MultiHeadLatentAttention

__all__ = ["MultiHeadLatentModule"]


class MultiHeadLatentModule(ComponentModule):
    """``[B, T, D] -> [B, T, D]``; ``tests/mla_reference.py`` spells it out.

    ``rotary`` has the frequencies of a head of ``config.turned_width``; ``pairs``, stored in checkpoints, says which of
    them the shared key takes.  One frequency may be taken several times.
    """

    config: MultiHeadLatentAttention
    pairs: Tensor
    q_proj: Tensor
    q_rope_proj: Tensor
    kv_down_proj: Tensor
    k_rope_proj: Tensor
    k_up_proj: Tensor
    v_up_proj: Tensor
    o_proj: Tensor

    def __init__(self, config: MultiHeadLatentAttention, width: int) -> None:
        super().__init__(config, width)
        if config.pairs:
            assert config.rope is not None
            self.rotary = Rotary(config.rope, config.turned_width)

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return linear(self.mix(x, frame), self.o_proj, self._optional("o_bias"))

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, H d]``."""
        query, turned_query, latent, key = self._projected(x, frame.positions)
        if frame.cache is None:
            return self._fused(query, turned_query, latent, key, frame)
        layer = frame.cache.layer(self.site, frame.application)
        if frame.ends is not None:
            return self._step(query, turned_query, latent, key, frame)
        before = layer.length
        cached = layer.extend(latent=latent) if key is None else layer.extend(latent=latent, key=key)
        if before == 0:
            return self._fused(query, turned_query, cached["latent"], cached.get("key"), frame)
        if too_many_scores(query, cached["latent"].shape[1]):
            return self._in_tiles(query, turned_query, cached["latent"], cached.get("key"), before)
        return self._absorbed(query, turned_query, cached["latent"], cached.get("key"), before)

    def probabilities(self, x: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """The attention of the tokens ``rows`` ``[N]`` among those of ``x``, for looking at: ``[B, H, N, T]``."""
        query, turned_query, latent, turned_key = self._projected(x, positions)
        key, _ = self._expanded(latent, turned_key)
        query = query if turned_query is None else torch.cat([query, turned_query], dim=-1)
        share = self.config.n_heads // self.config.n_kv_heads
        scores = query[..., rows, :] @ key.repeat_interleave(share, dim=1).transpose(2, 3) * self.config.multiplier
        ahead = torch.arange(x.shape[1], device=x.device) > rows[:, None]
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return wide.masked_fill(ahead, -torch.inf).softmax(dim=-1)

    def _projected(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Queries ``[B, H, T, d]`` and rotary ones ``[B, H, T, e]``, latents ``[B, T, r]`` and rotary keys."""
        names = self.joint_weights()
        biases = (name.replace("_proj", "_bias") for name in names)
        parts = dict(zip(names, self.products(x, *zip(names, biases, strict=True)), strict=True))
        latent = parts["kv_down_proj"]
        if self.config.latent_norm_eps is not None:
            latent = F.rms_norm(latent, (self.config.rank,), self._optional("latent_norm"), self.config.latent_norm_eps)
        turned_query, turned_key = self._turned(parts, positions)
        return self._heads(parts["q_proj"]), turned_query, latent, turned_key

    def _optional(self, name: str) -> Tensor | None:
        tensor: Tensor | None = getattr(self, name, None)
        return tensor

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, T, H w] -> [B, H, T, w]``."""
        return x.view(*x.shape[:2], self.config.n_heads, -1).transpose(1, 2)

    def joint_weights(self) -> tuple[str, ...]:
        """Everything that is read from the token."""
        rotary = ("q_rope_proj", "k_rope_proj") if self.config.pairs else ()
        return ("q_proj", "kv_down_proj", *rotary)

    def _turned(self, parts: Mapping[str, Tensor], positions: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Rotary queries ``[B, H, T, e]`` and the key of all heads ``[B, T, e]``, both turned."""
        if not self.config.pairs:
            return None, None
        cos, sin = cos_sin(self.rotary.frequencies[self.pairs], positions, scaling=self.rotary.scaling)
        key = parts["k_rope_proj"].unsqueeze(1)
        return rotate(self._heads(parts["q_rope_proj"]), cos, sin), rotate(key, cos, sin).squeeze(1)

    def _fused(
        self,
        query: Tensor,
        turned_query: Tensor | None,
        latent: Tensor,
        turned_key: Tensor | None,
        frame: Frame,
    ) -> Tensor:
        """Causal attention among the tokens of this pass, in one call.

        Queries, keys and values are padded with zeros to one width in flight: with unequal ones the flash kernels step
        back to a path that is several times slower.  Nothing padded is cached.
        """
        config = self.config
        key, value = self._expanded(latent, turned_key)
        query = query if turned_query is None else torch.cat([query, turned_query], dim=-1)
        q, k, v = map(self._padded, (query, key, value))
        if isinstance(frame, PackedFrame):
            y = frame.attend(q, k, v, scale=config.multiplier)
        else:
            gqa = config.n_heads != config.n_kv_heads
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=config.multiplier, enable_gqa=gqa)
        return y[..., : config.head_dim].transpose(1, 2).flatten(2)

    def _expanded(self, latent: Tensor, turned_key: Tensor | None) -> tuple[Tensor, Tensor]:
        """Keys ``[B, G, S, d + e]`` and values ``[B, G, S, d]`` of latents ``[B, S, r]`` and keys ``[B, S, e]``."""
        groups = (*latent.shape[:2], self.config.n_kv_heads, self.config.head_dim)
        key = linear(latent, self.k_up_proj).view(groups).transpose(1, 2)
        value = linear(latent, self.v_up_proj).view(groups).transpose(1, 2)
        if turned_key is not None:
            key = torch.cat([key, turned_key.unsqueeze(1).expand(-1, self.config.n_kv_heads, -1, -1)], dim=-1)
        return key, value

    def _padded(self, x: Tensor) -> Tensor:
        missing = self.config.fused_width - x.shape[-1]
        return F.pad(x, (0, missing)) if missing else x

    def _absorbed(
        self, query: Tensor, turned_query: Tensor | None, latent: Tensor, turned_key: Tensor | None, before: int
    ) -> Tensor:
        """Attention to a compressed cache of ``before`` earlier tokens and this pass's, which is never expanded.

        Queries are taken into the latent's space, probabilities mix latents as they are, and only the mixture is
        expanded, once a head.
        """
        config = self.config
        batch, heads, tokens, width = query.shape
        groups, rank = config.n_kv_heads, config.rank
        up = self.k_up_proj.view(groups, width, rank)
        inside = query.reshape(batch, groups, -1, width) @ up  # [B, G, m T, r]
        scores = inside.view(batch, -1, rank) @ latent.transpose(1, 2)  # [B, H T, S]
        if turned_query is not None and turned_key is not None:
            turned = turned_query.reshape(batch, -1, config.rope_dim)
            scores = torch.baddbmm(scores, turned, turned_key.transpose(1, 2))
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32)).view(batch, heads, tokens, -1)
        wide = wide * config.multiplier
        if tokens > 1:
            ahead = torch.ones(wide.shape[-2:], dtype=torch.bool, device=wide.device).triu(before + 1)
            wide = wide.masked_fill(ahead, float("-inf"))
        probabilities = wide.softmax(dim=-1).to(latent.dtype)
        mixed = (probabilities.view(batch, -1, latent.shape[1]) @ latent).view(batch, groups, -1, rank)
        y = mixed @ self.v_up_proj.view(groups, width, rank).transpose(1, 2)
        return y.view(batch, heads, tokens, width).transpose(1, 2).flatten(2)

    def _in_tiles(
        self, query: Tensor, turned_query: Tensor | None, latent: Tensor, turned_key: Tensor | None, before: int
    ) -> Tensor:
        """The same for many tokens: the cache is expanded a few thousand tokens at a time."""

        def tile(first: int, last: int) -> tuple[Tensor, Tensor]:
            return self._expanded(latent[:, first:last], None if turned_key is None else turned_key[:, first:last])

        whole = query if turned_query is None else torch.cat([query, turned_query], dim=-1)
        y, _ = attend_chunk(whole, tile, before, scale=self.config.multiplier)
        return y.transpose(1, 2).flatten(2)

    def _step(
        self, query: Tensor, turned_query: Tensor | None, latent: Tensor, turned_key: Tensor | None, frame: Frame
    ) -> Tensor:
        """A decode step: all heads read one latent, as keys and as values."""
        config = self.config
        assert frame.cache is not None and frame.ends is not None
        layer = frame.cache.layer(self.site, frame.application)
        new = {"latent": latent} if turned_key is None else {"latent": latent, "key": turned_key}
        layer.put(frame.ends, **new)
        batch, groups, width, rank = len(query), config.n_kv_heads, config.head_dim, config.rank
        inside = torch.einsum(
            "bgmw,gwr->bgmr", query.reshape(batch, groups, -1, width), self.k_up_proj.view(groups, width, rank)
        )
        whole = inside.reshape(batch, 1, config.n_heads, rank)
        parts = [CachedPart(layer.entry("latent"), rank, per_unit=False)]
        if turned_query is not None:
            whole = torch.cat([turned_query.transpose(1, 2), whole], dim=-1)
            parts.insert(0, CachedPart(layer.entry("key"), config.rope_dim, per_unit=False))
        up = self.v_up_proj.view(groups, width, rank)
        mixed, _ = attend_cached(whole, parts, None, frame, scale=config.multiplier, up=up)
        return mixed.flatten(1).unsqueeze(1)
