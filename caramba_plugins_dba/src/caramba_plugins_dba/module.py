"""DBA in torch: one fused call for training and prefill, absorbed projections for decoding.

Axes: B batch, T tokens of this pass, S tokens in the cache, H query heads, G key/value heads, m = H/G query heads a
key/value head, n pairs of a rotary key, c width of one head's semantic query, r width of a value latent, d head width.
Each kind of key and value comes in P parts, each for as many consecutive heads: G of them, or ``groups`` shared ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from caramba_plugins_standard.decoding import CachedPart, attend_cached, attend_chunk, too_many_scores
from caramba_plugins_standard.gqa_module import norm_heads
from caramba_plugins_standard.rotary import Rotary, cos_sin, rotate
from caramba_plugins_standard.training.documents import PackedFrame
from torch import Tensor

from caramba_core.nn.cache import LayerCache
from caramba_core.nn.frame import Frame
from caramba_core.nn.module import ComponentModule, linear
from caramba_plugins_dba.attention import DecoupledBottleneckAttention

__all__ = ["DecoupledBottleneckModule"]

_PATHS = ("q_geo_proj", "q_sem_proj", "k_geo_proj", "k_sem_proj")


class DecoupledBottleneckModule(ComponentModule):
    """``[B, T, D] -> [B, T, D]``.

    ``rotary`` has the frequencies of all the teacher's pairs, after any scaling; ``pairs`` ``[P, n]``, stored in
    checkpoints, says which of them each rotary key turns with.  A shared key may turn with one several times.
    """

    config: DecoupledBottleneckAttention
    pairs: Tensor
    q_proj: Tensor
    k_proj: Tensor
    q_norm: Tensor
    k_norm: Tensor
    q_geo_proj: Tensor
    q_sem_proj: Tensor
    k_geo_proj: Tensor
    k_sem_proj: Tensor
    v_proj: Tensor
    k_up_proj: Tensor
    v_up_proj: Tensor
    o_proj: Tensor
    q_geo_bias: Tensor
    q_sem_bias: Tensor
    k_geo_bias: Tensor
    v_bias: Tensor
    o_bias: Tensor
    gate: Tensor
    gate_proj: Tensor
    temperature: Tensor
    null_key: Tensor
    null_bias: Tensor
    null_value: Tensor

    def __init__(self, config: DecoupledBottleneckAttention, width: int) -> None:
        super().__init__(config, width)
        self.per_group = config.n_heads // config.n_kv_heads
        self.read_by_all = {name for name, entry in config.cache_spec(width).items() if len(entry.shape) == 1}
        self._projections = {
            name: name.replace("_proj", "_bias") if name != "v_proj" else "" for name in self.joint_weights()
        }
        if config.pairs:
            assert config.rope is not None
            self.rotary = Rotary(config.rope, config.head_dim)

    def forward(self, x: Tensor, frame: Frame) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return linear(self.mix(x, frame), self.o_proj, self._optional("o_bias"))

    def mix(self, x: Tensor, frame: Frame) -> Tensor:
        """What the output projection reads: ``[B, T, D] -> [B, T, H * v_width]``."""
        parts = self._projected(x)
        queries, keys = self._queries_and_keys(parts, x, frame.positions)
        values = parts["v_proj"]
        if "v" not in self.read_by_all:
            values = values.unflatten(-1, (self.config.v_parts, -1))
        if frame.cache is None:
            return self._fused(queries, keys, values, frame)
        layer = frame.cache.layer(self.site, frame.application)
        if frame.ends is not None:
            layer.put(frame.ends, v=values, **keys)
            return self._step(queries, layer, frame)
        before = layer.length
        cached = layer.extend(v=values, **keys)
        padding = frame.hidden_keys(before, cached["v"].shape[1])
        if before == 0:
            return self._fused(queries, {name: cached[name] for name in keys}, cached["v"], frame)
        many = too_many_scores(next(iter(queries.values())), cached["v"].shape[1])
        if many and padding is None and self.config.window is None:
            return self._in_tiles(queries, cached, before)
        return self._absorbed(queries, cached, padding)

    def _optional(self, name: str) -> Tensor | None:
        tensor: Tensor | None = getattr(self, name, None)
        return tensor

    # ------------------------------------------------------------------------------------------------ projections

    def queries_and_keys(self, x: Tensor, positions: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Queries ``[B, G, m, T, w]`` and keys as they are cached, both by the name of the cached key.

        ``k_geo``: rotated, ``k_sem``: as it is; keys ``[B, T, P, w]``, or ``[B, T, w]`` of what all heads share.  A
        joint latent has no ``k_sem`` among the keys.
        """
        return self._queries_and_keys(self._projected(x), x, positions)

    def joint_weights(self) -> tuple[str, ...]:
        """Everything that is read from the token, but for gates."""
        if self.config.qk_norm_eps is not None:
            return ("q_proj", "k_proj", "v_proj")
        return (*self._own(*_PATHS), "v_proj")

    def _own(self, *names: str) -> list[str]:
        return [name for name in names if hasattr(self, name)]

    def _projected(self, x: Tensor) -> dict[str, Tensor]:
        """What both paths read of ``[B, T, D]``, and values without their bias, by the names of their weights."""
        if self.config.qk_norm_eps is not None:
            return self._projected_behind_norms(x, self.config.qk_norm_eps)
        return dict(zip(self._projections, self.products(x, *self._projections.items()), strict=True))

    def _projected_behind_norms(self, x: Tensor, eps: float) -> dict[str, Tensor]:
        """Each head's part of its own normalized query, and keys of all normalized keys side by side."""
        config = self.config
        query, key, value = self.products(x, ("q_proj", "q_bias"), ("k_proj", "k_bias"), ("v_proj", ""))
        query = norm_heads(query, self.q_norm, eps, config.qk_norm_offset).unflatten(-1, (config.n_heads, -1))
        key = norm_heads(key, self.k_norm, eps, config.qk_norm_offset)
        parts = {"v_proj": value}
        for name in self._own(*_PATHS):
            weight: Tensor = getattr(self, name)
            if name.startswith("q"):
                each = weight.unflatten(0, (config.n_heads, -1))
                parts[name] = torch.einsum("bthd,hwd->bthw", query, each).flatten(-2)
            else:
                parts[name] = linear(key, weight)
        return parts

    def _queries_and_keys(
        self, parts: Mapping[str, Tensor], x: Tensor, positions: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        config = self.config
        queries, keys = {}, {}
        if config.pairs:
            cos, sin = cos_sin(self.rotary.frequencies[self.pairs], positions, scaling=self.rotary.scaling)
            each = [self._of_heads(angle, -3).unsqueeze(-3) for angle in (cos, sin)]
            queries["k_geo"] = rotate(self._heads(parts["q_geo_proj"]), *each)
            key = parts["k_geo_proj"].unflatten(-1, (config.geo_parts, -1)).transpose(1, 2)
            key = rotate(key, cos, sin).transpose(1, 2)
            keys["k_geo"] = key.squeeze(2) if "k_geo" in self.read_by_all else key
        if config.sem_dim:
            key = parts["k_sem_proj"]
            keys["k_sem"] = key if "k_sem" in self.read_by_all else key.unflatten(-1, (config.sem_parts, -1))
        if config.tied_semantic:
            own = self._of_each(keys["k_sem"]).transpose(1, 2)
            queries["k_sem"] = own.unsqueeze(2).expand(-1, -1, self.per_group, -1, -1)
        elif config.sem_width:
            queries["k_sem"] = self._heads(parts["q_sem_proj"])
        return self._balanced(queries, x), keys

    def _balanced(self, queries: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """Gates and temperatures as factors of the queries, one where their weights are zero."""
        config = self.config
        factors: dict[str, list[Tensor]] = {name: [] for name in queries}
        if config.gate != "none":
            gate = self._heads(linear(x, self.gate_proj)) if config.gate == "dynamic" else self._a_head(self.gate)
            factors["k_geo"].append(2 * (-gate).sigmoid())
            factors["k_sem"].append(2 * gate.sigmoid())
        if config.temperature:
            for each in factors.values():
                each.append(self._a_head(self.temperature).exp())
        return {name: math.prod(factors[name], start=query).to(query.dtype) for name, query in queries.items()}

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, T, H w] -> [B, G, m, T, w]``."""
        batch, tokens, _ = x.shape
        return x.view(batch, tokens, self.config.n_kv_heads, self.per_group, -1).permute(0, 2, 3, 1, 4)

    def _a_head(self, x: Tensor) -> Tensor:
        """``[H] -> [G, m, 1, 1]``."""
        return x.view(self.config.n_kv_heads, self.per_group, 1, 1)

    def _of_heads(self, parts: Tensor, axis: int) -> Tensor:
        """Parts ``[..., P, ...]`` as the key/value heads read them: ``[..., G, ...]``, or as they are where P is 1."""
        count, groups = parts.shape[axis], self.config.n_kv_heads
        return parts if count in (1, groups) else parts.repeat_interleave(groups // count, dim=axis)

    def _of_each(self, key: Tensor) -> Tensor:
        """A key as it is cached, as every key/value head's: ``[B, T, w]`` or ``[B, T, P, w]`` to ``[B, T, G, w]``."""
        if key.dim() == 3:
            key = key.unsqueeze(2)
        return self._of_heads(key, 2).expand(-1, -1, self.config.n_kv_heads, -1)

    # ------------------------------------------------------------------------------------------------ one fused call

    def _fused(self, queries: Mapping[str, Tensor], keys: Mapping[str, Tensor], values: Tensor, frame: Frame) -> Tensor:
        """Causal attention among the tokens of this pass, in one call.

        Queries, keys and values are padded with zeros to one width in flight: with unequal ones the flash kernels step
        back to a path that is several times slower.  Nothing padded is cached.  The null key and value stand as a token
        in front of the others, whose own output is dropped.
        """
        config = self.config
        k, v = self._expanded(keys, values)
        if (bias := self._optional("v_bias")) is not None:
            v = v + bias.view(config.n_kv_heads, -1)
        q = torch.cat(tuple(queries.values()), dim=-1)
        if config.null:
            q, k, v = self._with_null(q, k, v)
        q = _padded(q, config.fused_width).flatten(1, 2)
        k = _padded(k, config.fused_width).transpose(1, 2)
        v = _padded(v, config.fused_width).transpose(1, 2)
        if isinstance(frame, PackedFrame) and not config.null:
            y = frame.attend(q, k, v, scale=config.multiplier, window=config.window)
        else:
            mask = self._mask(k.shape[2], k.device, frame.hidden_keys(0, values.shape[1]))
            y = F.scaled_dot_product_attention(
                *(q, k, v),
                attn_mask=mask,
                is_causal=mask is None,
                scale=config.multiplier,
                enable_gqa=config.n_heads != config.n_kv_heads,
            )
        y = y[:, :, 1:] if config.null else y
        return y.transpose(1, 2)[..., : config.v_width].flatten(2)

    def _expanded(self, keys: Mapping[str, Tensor], values: Tensor) -> tuple[Tensor, Tensor]:
        """Whole keys ``[B, S, G, w]``, and values ``[B, S, G, v_width]`` without their bias, of what is cached."""
        config, whole = self.config, [self._of_each(key) for key in keys.values()]
        if config.latent == "joint":
            whole.append(linear(values, self.k_up_proj).unflatten(-1, (config.n_kv_heads, -1)))
        if config.v_layout == "latent":
            if config.groups == 1:
                values = linear(values, self.v_up_proj)
            else:
                up = self.v_up_proj.view(config.groups, -1, self.v_up_proj.shape[-1])
                values = torch.einsum("bspr,per->bspe", values, up).flatten(2)
            values = values.unflatten(-1, (config.n_kv_heads, -1))
        return torch.cat(whole, dim=-1), values

    def _with_null(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, G, m, T + 1, w + 1]``, keys ``[B, T + 1, G, w + 1]``, values ``[B, T + 1, G, v_width]``.

        The last column is one in the null key alone; there queries have their head's bias.
        """
        config = self.config
        bias = (self._a_head(self.null_bias) / config.multiplier).to(q.dtype).expand(*q.shape[:-1], 1)
        q = F.pad(torch.cat([q, bias], dim=-1), (0, 0, 1, 0))
        null = k.new_zeros(config.n_kv_heads, k.shape[-1])
        if config.sem_dim:
            null = torch.cat(
                [null[:, : 2 * config.pairs], self.null_key.view(config.n_kv_heads, -1).to(k.dtype)], dim=-1
            )
        null = torch.cat([null, null.new_ones(config.n_kv_heads, 1)], dim=-1)
        k = torch.cat([null.expand(k.shape[0], 1, -1, -1), F.pad(k, (0, 1))], dim=1)
        value = self.null_value.view(config.n_kv_heads, -1).to(v.dtype)
        return q, k, torch.cat([value.expand(v.shape[0], 1, -1, -1), v], dim=1)

    def _mask(self, tokens: int, device: torch.device, padding: Tensor | None) -> Tensor | None:
        """Bool ``[T, T]`` or ``[B, 1, T, T]`` of what each token sees; none where that is all before it.

        ``padding`` is of :meth:`Frame.hidden_keys`, without the null token.
        """
        window = tokens if self.config.window is None else self.config.window
        if window >= tokens and padding is None:
            return None
        place = torch.arange(tokens, device=device)
        seen = (place <= place[:, None]) & (place > place[:, None] - window)
        if self.config.null:
            seen[:, 0] = True
        if padding is None:
            return seen
        return (seen & ~F.pad(padding, (1, 0, 1, 0) if self.config.null else (0, 0))).unsqueeze(1)

    # ------------------------------------------------------------------------------------------------ spelled out

    def _absorbed(self, queries: Mapping[str, Tensor], cached: Mapping[str, Tensor], padding: Tensor | None) -> Tensor:
        """Attention to a compressed cache, this pass's tokens at its end, which is never expanded.

        Queries meet the cached keys as they are, probabilities mix the value latents as they are, and only the mixture
        is expanded, once a head.
        """
        config = self.config
        value = cached["v"]
        tokens, rows = next(iter(queries.values())).shape[-2], None
        if tokens > 1 or padding is not None or config.window is not None:
            rows = torch.arange(value.shape[1], device=value.device)[-tokens:]
        probabilities = self._probabilities(self._compressed(queries), cached, rows, padding).to(value.dtype)
        y = _products(probabilities, value if value.dim() == 4 else value.unsqueeze(2))
        if config.v_layout == "latent":
            y = self._raised(y)
        share = probabilities.sum(-1, keepdim=True) if config.null else None
        return self._completed(y, share).permute(0, 3, 1, 2, 4).flatten(2)

    def _compressed(self, queries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Queries as they meet what is cached, by its names: semantic ones of a joint latent are taken into it."""
        taken = dict(queries)
        if self.config.latent == "joint":
            query = taken.pop("k_sem").transpose(0, 1)  # [G, B, m, T, d]
            up = self.k_up_proj.view(self.config.n_kv_heads, self.config.head_dim, -1)
            inside = torch.bmm(query.flatten(1, 3), up).view(*query.shape[:-1], -1)
            taken["v"] = inside.transpose(0, 1)
        return taken

    def _raised(self, y: Tensor) -> Tensor:
        """Mixed latents ``[B, G, m, T, r]`` as values ``[B, G, m, T, d]``; one product a group copies no weights."""
        up = self.v_up_proj.view(self.config.n_kv_heads, self.config.head_dim, -1).transpose(1, 2)
        grouped = y.transpose(0, 1)
        return torch.bmm(grouped.flatten(1, 3), up).view(*grouped.shape[:-1], -1).transpose(0, 1)

    def _completed(self, y: Tensor, share: Tensor | None) -> Tensor:
        """Mixed values ``[B, G, m, T, v_width]`` with bias and null value; ``share`` is not the null value's."""
        bias, groups = self._optional("v_bias"), (self.config.n_kv_heads, 1, 1, -1)
        if bias is not None:
            y = y + (bias.view(groups) if share is None else share * bias.view(groups))
        return y if share is None else y + (1 - share) * self.null_value.view(groups)

    def _step(self, queries: Mapping[str, Tensor], layer: LayerCache, frame: Frame) -> Tensor:
        """A decode step.  The heads that read one part of the values are a unit, which reads everything once.

        Where a unit has keys of several key/value heads, a query is zero in the columns of the others.
        """
        config = self.config
        groups, batch, units = config.n_kv_heads, frame.positions.shape[0], config.v_parts
        keys, widened = [], []
        for name, query in self._compressed(queries).items():
            width, parts = query.shape[-1], config.geo_parts if name == "k_geo" else config.sem_parts
            if parts > units:  # all of them, as there is one unit
                query = query.unsqueeze(4) * torch.eye(groups, dtype=query.dtype, device=query.device).view(
                    groups, 1, 1, groups, 1
                )
                width = width * groups
            widened.append(query.reshape(batch, units, -1, width))
            keys.append(CachedPart(layer.entry(name), width, per_unit=units > 1 and parts == units))
        joint = config.latent == "joint"  # then values are the last part of the keys
        values = None if joint else CachedPart(layer.entry("v"), config.v_dim // units, per_unit=units > 1)
        up = self.v_up_proj.view(groups, config.head_dim, -1) if config.v_layout == "latent" else None
        whole = torch.cat(widened, dim=-1)
        mixed, total = attend_cached(whole, keys, values, frame, scale=config.multiplier, up=up)
        y = mixed.view(batch, groups, self.per_group, -1)
        return self._with_null_value(y.unsqueeze(3), total.view(*y.shape[:3], 1, 1), queries)

    def _in_tiles(self, queries: Mapping[str, Tensor], cached: Mapping[str, Tensor], before: int) -> Tensor:
        """Attention of many tokens behind a cache, which is expanded a few thousand tokens at a time."""

        def tile(first: int, last: int) -> tuple[Tensor, Tensor]:
            span = {name: entry[:, first:last] for name, entry in cached.items()}
            value = span.pop("v")
            key, value = self._expanded(span, value)
            return key.transpose(1, 2), value.transpose(1, 2)

        whole = torch.cat(tuple(queries.values()), dim=-1).flatten(1, 2)
        y, total = attend_chunk(whole, tile, before, scale=self.config.multiplier)
        heads = (self.config.n_kv_heads, self.per_group)
        return self._with_null_value(y.unflatten(1, heads), total.unflatten(1, heads).unsqueeze(-1), queries)

    def _with_null_value(self, y: Tensor, total: Tensor, queries: Mapping[str, Tensor]) -> Tensor:
        """Mixed values ``[B, G, m, T, v_width]`` and their scores' log-sum-exps, completed: ``[B, T, H v_width]``."""
        share = None
        if self.config.null:
            share = (total - self._null_scores(queries, total.dtype)).sigmoid().to(y.dtype)
            y = y * share
        return self._completed(y, share).permute(0, 3, 1, 2, 4).flatten(2)

    def _null_scores(self, queries: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """What each query scores with the null key: ``[B, G, m, N, 1]``."""
        config = self.config
        null = self._a_head(self.null_bias).to(dtype)
        if config.sem_dim:
            key = self.null_key.view(config.n_kv_heads, 1, -1, 1).to(queries["k_sem"].dtype)
            null = null + (queries["k_sem"] @ key).to(dtype) * config.multiplier
        batch, tokens = (next(iter(queries.values())).shape[axis] for axis in (0, 3))
        return null.expand(batch, -1, -1, tokens, 1)

    def probabilities(self, x: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """The attention of the tokens ``rows`` ``[N]`` among those of ``x``, for measuring: ``[B, H, N, T]``."""
        parts = self._projected(x)
        queries, keys = self._queries_and_keys(parts, x, positions)
        queries = self._compressed({name: query[..., rows, :] for name, query in queries.items()})
        return self._probabilities(queries, {**keys, "v": parts["v_proj"]}, rows).flatten(1, 2)

    def _probabilities(
        self,
        queries: Mapping[str, Tensor],
        keys: Mapping[str, Tensor],
        rows: Tensor | None,
        padding: Tensor | None = None,
    ) -> Tensor:
        """``[B, G, m, N, S]`` of queries that stand at ``rows`` ``[N]`` of the keys, which are as cached.

        Without rows everything is seen.  Float32 at least.  With null attention a row sums to less than one.
        """
        config = self.config
        scores = None
        for name, query in queries.items():
            key = keys[name] if keys[name].dim() == 4 else keys[name].unsqueeze(2)
            scores = _products(query, key.transpose(1, 3), scores)
        assert scores is not None
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * config.multiplier
        if rows is not None:
            place = torch.arange(scores.shape[-1], device=scores.device)
            hidden = place > rows[:, None]
            if config.window is not None:
                hidden = hidden | (place <= rows[:, None] - config.window)
            if padding is not None:
                hidden = hidden | padding[:, None, None]
            scores = scores.masked_fill(hidden, -torch.inf)
        if not config.null:
            return scores.softmax(dim=-1)
        return torch.cat([self._null_scores(queries, scores.dtype), scores], dim=-1).softmax(dim=-1)[..., 1:]


def _products(x: Tensor, cached: Tensor, added: Tensor | None = None) -> Tensor:
    """Each head's rows ``[B, G, m, T, s]`` times its part of ``[B, s, P, w]``: ``[B, G, m, T, w]``, ``added`` to it.

    One batch of products, which takes what is cached as it lies, where ``@`` would expand and reshape it.
    """
    parts = cached.transpose(1, 2).flatten(0, 1)
    rows = x.reshape(len(parts), -1, x.shape[-1])
    if added is None:
        return torch.bmm(rows, parts).view(*x.shape[:-1], -1)
    return torch.baddbmm(added.view(*rows.shape[:2], -1), rows, parts).view(*x.shape[:-1], -1)


def _padded(x: Tensor, width: int) -> Tensor:
    """Zeros at the end of the last axis up to ``width``."""
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))
