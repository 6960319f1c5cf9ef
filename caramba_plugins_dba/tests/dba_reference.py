"""DBA as its formulas say, a head at a time: what the fast paths are held against."""

from __future__ import annotations

import torch
from caramba_plugins_dba.module import DecoupledBottleneckModule
from torch import Tensor

__all__ = ["reference"]


def reference(module: DecoupledBottleneckModule, x: Tensor, positions: Tensor) -> Tensor:
    """``[B, T, D] -> [B, T, D]`` of whole sequences; ``positions`` ``[T]``.  Differentiable, slow, typed as ``x``."""
    heads = [_head(module, x, positions, head) for head in range(module.config.n_heads)]
    y = torch.cat(heads, dim=-1) @ module.o_proj.T
    return y + module.o_bias if module.config.o_bias else y


def _head(module: DecoupledBottleneckModule, x: Tensor, positions: Tensor, head: int) -> Tensor:
    """What one query head mixes: ``[B, T, v_width]``."""
    config = module.config
    group = head // (config.n_heads // config.n_kv_heads)
    batch, tokens, _ = x.shape
    logits = x.new_zeros(batch, tokens, tokens)
    of_query, of_key = _read(module, x, head)
    if config.pairs:
        q = of_query @ _rows(module.q_geo_proj, head, 2 * config.pairs).T
        part = _part(module, group, config.geo_layout)
        k = of_key @ _rows(module.k_geo_proj, part, 2 * config.pairs).T
        if config.q_bias and config.qk_norm_eps is None:
            q = q + _rows(module.q_geo_bias, head, 2 * config.pairs)
        if config.k_bias and config.qk_norm_eps is None:
            k = k + _rows(module.k_geo_bias, part, 2 * config.pairs)
        q, k = _rotated(module, q, positions, part), _rotated(module, k, positions, part)
        logits = logits + _balance(module, x, head, -1.0) * (q @ k.transpose(1, 2))
    if config.sem_width:
        q, k = _semantic(module, x, head, group)
        logits = logits + _balance(module, x, head, 1.0) * (q @ k.transpose(1, 2))
    logits = logits * config.multiplier
    if config.temperature:
        logits = logits * module.temperature[head].exp()
    place = torch.arange(tokens)
    window = tokens if config.window is None else config.window
    seen = (place <= place[:, None]) & (place > place[:, None] - window)
    logits = logits.masked_fill(~seen, -torch.inf)
    values = _values(module, x, group)
    if not config.null:
        return logits.softmax(-1) @ values
    null = module.null_bias[head].expand(batch, tokens, 1)
    if config.sem_dim:
        q = _semantic(module, x, head, group)[0] * _balance(module, x, head, 1.0)
        if config.temperature:
            q = q * module.temperature[head].exp()
        null = null + config.multiplier * (q @ _rows(module.null_key, group, config.sem_width))[..., None]
    p = torch.cat([null, logits], dim=-1).softmax(-1)
    return p[..., :1] * _rows(module.null_value, group, config.v_width) + p[..., 1:] @ values


def _read(module: DecoupledBottleneckModule, x: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """What a head's queries and keys are projected from: ``x``, or its own normalized query and all normalized keys."""
    config = module.config
    if config.qk_norm_eps is None:
        return x, x
    query, key = x @ module.q_proj.T, x @ module.k_proj.T
    if config.q_bias:
        query = query + module.q_bias
    if config.k_bias:
        key = key + module.k_bias
    normed = []
    for y, weight in ((query, module.q_norm), (key, module.k_norm)):
        y = y.unflatten(-1, (-1, len(weight)))
        y = y / (y.pow(2).mean(-1, keepdim=True) + config.qk_norm_eps).sqrt() * (config.qk_norm_offset + weight)
        normed.append(y.flatten(-2))
    return _rows(normed[0].transpose(0, -1), head, config.head_dim).transpose(0, -1), normed[1]


def _part(module: DecoupledBottleneckModule, group: int, layout: str) -> int:
    """Which rotary key, semantic key or value a key/value head reads."""
    config = module.config
    return group if layout == "per_head" else group // (config.n_kv_heads // config.groups)


def _rows(weight: Tensor, index: int, size: int) -> Tensor:
    return weight[index * size : (index + 1) * size]


def _semantic(module: DecoupledBottleneckModule, x: Tensor, head: int, group: int) -> tuple[Tensor, Tensor]:
    """A head's semantic queries and keys: ``[B, T, c]`` each."""
    config = module.config
    of_query, of_key = _read(module, x, head)
    if config.latent == "joint":
        k = x @ module.v_proj.T @ _rows(module.k_up_proj, group, config.head_dim).T
    else:
        k = of_key @ _rows(module.k_sem_proj, _part(module, group, config.k_layout), config.sem_width).T
    if config.tied_semantic:
        return k, k
    q = of_query @ _rows(module.q_sem_proj, head, config.sem_width).T
    biased = config.q_bias and config.qk_norm_eps is None
    return q + _rows(module.q_sem_bias, head, config.sem_width) if biased else q, k


def _values(module: DecoupledBottleneckModule, x: Tensor, group: int) -> Tensor:
    """``[B, T, v_width]``."""
    config = module.config
    if config.v_layout == "latent":
        latent = x @ _rows(module.v_proj, _part(module, group, config.v_layout), config.v_dim // config.groups).T
        values = latent @ _rows(module.v_up_proj, group, config.head_dim).T
    else:
        values = x @ _rows(module.v_proj, group, config.v_width).T
    return values + _rows(module.v_bias, group, config.v_width) if config.v_bias else values


def _balance(module: DecoupledBottleneckModule, x: Tensor, head: int, sign: float) -> Tensor:
    """The gate's factor of one path: ``[B, T, 1]`` or a scalar."""
    if module.config.gate == "static":
        return 2 * torch.sigmoid(sign * module.gate[head])
    if module.config.gate == "dynamic":
        return 2 * torch.sigmoid(sign * (x @ module.gate_proj[head]))[..., None]
    return x.new_ones(())


def _rotated(module: DecoupledBottleneckModule, x: Tensor, positions: Tensor, part: int) -> Tensor:
    """Pair ``j``, dimensions ``j`` and ``j + n``, turned by ``position * frequency`` as a complex number."""
    count = module.config.pairs
    angles = positions[:, None].to(x.dtype) * module.rotary.frequencies[module.pairs[part]].to(x.dtype)
    turned = torch.complex(x[..., :count], x[..., count:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1) * module.rotary.scaling
