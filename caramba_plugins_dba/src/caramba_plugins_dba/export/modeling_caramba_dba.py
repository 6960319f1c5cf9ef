"""Decoders with Decoupled Bottleneck Attention for transformers, in one file.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

A layer's attention is DBA or, in models that were converted in part, ordinary grouped-query attention.  What is cached
of a token in a DBA layer is ``geo_dim + sem_dim + v_dim`` values: rotated geometric keys, semantic keys, value latents.
They stand in the cache of transformers as keys ``[B, 1, S, geo_dim + sem_dim]`` and values ``[B, 1, S, v_dim]``, and
are never expanded in decoding.

    score_h(t, s) = scale * ( <q_sem_h(t), k_sem(s)> + <R q_geo_h(t), R k_geo_g(h)(s)> )

Axes: B batch, T tokens of this pass, S tokens seen, D model, H query heads, G key/value heads, m = H/G, d head width.
"""

# mypy: ignore-errors

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class CarambaDBAConfig(PretrainedConfig):
    """``attentions`` are the different attentions of the model, ``attention_of_layer`` the index of each layer's."""

    model_type = "caramba_dba"

    def __init__(
        self,
        vocab_size: int = 0,
        hidden_size: int = 0,
        intermediate_size: int = 0,
        num_hidden_layers: int = 0,
        rms_norm_eps: float = 1e-5,
        mlp_bias: bool = False,
        max_position_embeddings: int | None = None,
        attentions: list[dict[str, Any]] | None = None,
        attention_of_layer: list[int] | None = None,
        caramba: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.rms_norm_eps = rms_norm_eps
        self.mlp_bias = mlp_bias
        self.max_position_embeddings = max_position_embeddings
        self.attentions = attentions or []
        self.attention_of_layer = attention_of_layer or []
        self.caramba = caramba or {}
        super().__init__(**kwargs)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, config: CarambaDBAConfig) -> None:
        super().__init__()
        wide, narrow = config.intermediate_size, config.hidden_size
        self.gate_proj = nn.Linear(narrow, wide, bias=config.mlp_bias)
        self.up_proj = nn.Linear(narrow, wide, bias=config.mlp_bias)
        self.down_proj = nn.Linear(wide, narrow, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, D] -> [B, T, D]``."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Attention(nn.Module):
    """What both attentions share: rotary positions, masks, the output."""

    def __init__(self, settings: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.settings = settings
        self.layer = layer
        self.heads: int = settings["n_heads"]
        self.groups: int = settings["n_kv_heads"]
        self.head_dim: int = settings["head_dim"]
        self.scale: float = settings["scale"]

    def cos_sin(self, positions: Tensor, pairs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``[B, 1 or G, T, n]`` in float32 at least: positions in half precision would lose the order of tokens."""
        wide = torch.float64 if self.o_proj.weight.dtype == torch.float64 else torch.float32
        frequencies = torch.tensor(self.settings["frequencies"], dtype=wide, device=positions.device)
        frequencies = frequencies[None] if pairs is None else frequencies[pairs]
        angles = positions[:, None, :, None].to(wide) * frequencies[None, :, None, :]
        factor: float = self.settings["frequency_scaling"]
        return angles.cos() * factor, angles.sin() * factor

    def per_group(self, x: Tensor) -> Tensor:
        """``[B, T, G w] -> [B, G, T, w]``."""
        return x.unflatten(-1, (self.groups, -1)).transpose(1, 2)


class GroupedQueryAttention(Attention):
    """Ordinary attention, for layers that were not converted."""

    def __init__(self, settings: dict[str, Any], width: int, layer: int) -> None:
        super().__init__(settings, layer)
        bias, queries, keys = settings["qkv_bias"], self.heads * self.head_dim, self.groups * self.head_dim
        self.q_proj = nn.Linear(width, queries, bias=bias)
        self.k_proj = nn.Linear(width, keys, bias=bias)
        self.v_proj = nn.Linear(width, keys, bias=bias)
        self.o_proj = nn.Linear(queries, width, bias=settings["o_bias"])

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None, past: Any) -> Tensor:
        """``[B, T, D] -> [B, T, D]``; ``positions`` ``[B, T]``, ``mask`` as of :func:`visible`, ``past`` a cache."""
        query = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.per_group(self.k_proj(x)), self.per_group(self.v_proj(x))
        if self.settings["frequencies"]:
            cos, sin = self.cos_sin(positions)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past is not None:
            key, value = past.update(key, value, self.layer)
        y = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and x.shape[1] > 1,
            scale=self.scale,
            enable_gqa=self.heads != self.groups,
        )
        return self.o_proj(y.transpose(1, 2).flatten(2))


class DecoupledBottleneckAttention(Attention):
    """DBA: one fused call for the first pass, absorbed products with the compressed cache afterwards."""

    def __init__(self, settings: dict[str, Any], width: int, layer: int) -> None:
        super().__init__(settings, layer)
        self.geo_dim: int = settings["geo_dim"]
        self.sem_dim: int = settings["sem_dim"]
        self.v_dim: int = settings["v_dim"]
        self.shared_keys: bool = settings["k_layout"] == "shared"
        self.latent: bool = settings["v_layout"] == "latent"
        self.geo_width = self.geo_dim // self.groups
        self.sem_width = self.sem_dim if self.shared_keys else self.sem_dim // self.groups
        self.v_width = self.head_dim if self.latent else self.v_dim // self.groups
        heads = self.heads
        if self.geo_dim:
            self.q_geo_proj = nn.Linear(width, heads * self.geo_width, bias=settings["q_bias"])
            self.k_geo_proj = nn.Linear(width, self.geo_dim, bias=settings["k_bias"])
            self.register_buffer("pairs", torch.zeros(self.groups, self.geo_width // 2, dtype=torch.int64))
        if self.sem_dim:
            self.q_sem_proj = nn.Linear(width, heads * self.sem_width, bias=settings["q_bias"])
            self.k_sem_proj = nn.Linear(width, self.sem_dim, bias=False)
        self.v_proj = nn.Linear(width, self.v_dim, bias=False)
        if self.latent:
            self.v_up_proj = nn.Linear(self.v_dim, self.groups * self.head_dim, bias=False)
        if settings["v_bias"]:
            self.v_bias = nn.Parameter(torch.zeros(self.groups * self.v_width))
        self.o_proj = nn.Linear(heads * self.v_width, width, bias=settings["o_bias"])

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None, past: Any) -> Tensor:
        """``[B, T, D] -> [B, T, D]``; ``positions`` ``[B, T]``, ``mask`` as of :func:`visible`, ``past`` a cache."""
        queries, keys = self.queries_and_keys(x, positions)
        value = self.v_proj(x)
        if past is not None:
            before = past.get_seq_length(self.layer)
            key, value = past.update(torch.cat(keys, dim=-1)[:, None], value[:, None], self.layer)
            keys, value = list(key[:, 0].split([part.shape[-1] for part in keys], dim=-1)), value[:, 0]
            if before:
                return self.o_proj(self.absorbed(queries, keys, value, mask))
        return self.o_proj(self.fused(queries, keys, value, mask))

    def queries_and_keys(self, x: Tensor, positions: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Queries ``[B, G, m, T, w]`` and keys ``[B, T, geo_dim]``, ``[B, T, sem_dim]`` as they are cached."""
        queries, keys = [], []
        if self.geo_dim:
            cos, sin = self.cos_sin(positions, self.pairs)
            queries.append(rotate(self.per_head(self.q_geo_proj(x)), cos[:, :, None], sin[:, :, None]))
            keys.append(rotate(self.per_group(self.k_geo_proj(x)), cos, sin).transpose(1, 2).flatten(2))
        if self.sem_dim:
            queries.append(self.per_head(self.q_sem_proj(x)))
            keys.append(self.k_sem_proj(x))
        return queries, keys

    def per_head(self, x: Tensor) -> Tensor:
        """``[B, T, H w] -> [B, G, m, T, w]``."""
        return x.unflatten(-1, (self.groups, self.heads // self.groups, -1)).permute(0, 2, 3, 1, 4)

    def is_shared(self, index: int) -> bool:
        """Whether the keys of this place in the lists are one latent for all heads."""
        return self.shared_keys and (index == 1 or not self.geo_dim)

    def expanded(self, value: Tensor) -> Tensor:
        """``[B, S, v_dim] -> [B, G, S, v_width]``."""
        wide = self.per_group(self.v_up_proj(value) if self.latent else value)
        return wide + self.v_bias.view(self.groups, 1, -1) if self.settings["v_bias"] else wide

    def fused(self, queries: list[Tensor], keys: list[Tensor], value: Tensor, mask: Tensor | None) -> Tensor:
        """Everything padded with zeros to one width, for the flash kernels; nothing of it is cached."""
        widest = max(self.geo_width + self.sem_width, self.v_width)
        width = -(-widest // 8) * 8
        per_group = [
            key[:, None].expand(-1, self.groups, -1, -1) if self.is_shared(index) else self.per_group(key)
            for index, key in enumerate(keys)
        ]
        query, key = torch.cat(queries, dim=-1).flatten(1, 2), torch.cat(per_group, dim=-1)
        wide = self.expanded(value)
        y = F.scaled_dot_product_attention(
            F.pad(query, (0, width - query.shape[-1])),
            F.pad(key, (0, width - key.shape[-1])),
            F.pad(wide, (0, width - wide.shape[-1])),
            attn_mask=mask,
            is_causal=mask is None,
            scale=self.scale,
            enable_gqa=self.heads != self.groups,
        )
        return y[..., : self.v_width].transpose(1, 2).flatten(2)

    def absorbed(self, queries: list[Tensor], keys: list[Tensor], value: Tensor, mask: Tensor | None) -> Tensor:
        """Queries meet cached keys, probabilities mix cached values; only the mixture is expanded, once a head."""
        scores: Any = 0
        for index, (query, key) in enumerate(zip(queries, keys, strict=True)):
            if self.is_shared(index):
                product = (query.flatten(1, 3) @ key.transpose(1, 2)).view(*query.shape[:-1], -1)
            else:
                product = query @ self.per_group(key)[:, :, None].transpose(-1, -2)
            scores = scores + product
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.scale
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
        probabilities = scores.softmax(dim=-1).to(value.dtype)
        if self.latent:
            mixed = (probabilities.flatten(1, 3) @ value).view(*scores.shape[:-1], -1)
            y = mixed @ self.v_up_proj.weight.view(self.groups, 1, self.head_dim, -1).transpose(-1, -2)
        else:
            y = probabilities @ self.per_group(value)[:, :, None]
        if self.settings["v_bias"]:
            y = y + self.v_bias.view(self.groups, 1, 1, -1)
        return y.permute(0, 3, 1, 2, 4).flatten(2)


class DecoderLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: CarambaDBAConfig, layer: int) -> None:
        super().__init__()
        settings = config.attentions[config.attention_of_layer[layer]]
        kind = DecoupledBottleneckAttention if settings["type"] == "dba" else GroupedQueryAttention
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = kind(settings, config.hidden_size, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None, past: Any) -> Tensor:
        """``[B, T, D] -> [B, T, D]``; ``positions`` ``[B, T]``, ``mask`` as of :func:`visible`, ``past`` a cache."""
        x = x + self.self_attn(self.input_layernorm(x), positions, mask, past)
        return x + self.mlp(self.post_attention_layernorm(x))


class CarambaDBAModel(nn.Module):
    """Embeddings, layers, norm."""

    def __init__(self, config: CarambaDBAConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class CarambaDBAForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with its head."""

    config_class = CarambaDBAConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: CarambaDBAConfig) -> None:
        super().__init__(config)
        self.model = CarambaDBAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding matrix."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding matrix."""
        self.model.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As every causal model of transformers; ``attention_mask`` ``[B, S]`` marks padding with zeros."""
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        before = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(before, before + x.shape[1], device=x.device)[None]
            if attention_mask is not None:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, before:]
        mask = visible(x.shape[1], before, attention_mask, x.device)
        hidden = [x]
        for layer in self.model.layers:
            x = layer(x, position_ids, mask, past_key_values if use_cache is not False else None)
            hidden.append(x)
        x = self.model.norm(x)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, kept])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=(*hidden[:-1], x) if output_hidden_states else None,
        )


def visible(tokens: int, before: int, attention_mask: Tensor | None, device: torch.device) -> Tensor | None:
    """Bool ``[1 or B, 1, T, S]``: which tokens each new one sees; ``None`` where plain causality says it."""
    padded = attention_mask is not None and not bool(attention_mask.all())
    if not padded and (before == 0 or tokens == 1):
        return None
    query = torch.arange(before, before + tokens, device=device)[:, None]
    key = torch.arange(before + tokens, device=device)[None, :]
    mask = (key <= query)[None, None]
    if padded:
        assert attention_mask is not None
        mask = mask & attention_mask[:, None, None, : before + tokens].bool() | (key == query)[None, None]
    return mask


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs ``(p, p + n)`` of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
