"""Decoders with Decoupled Bottleneck Attention for transformers, in one file.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

A layer's attention is DBA or, in models that were converted in part, ordinary grouped-query attention.  What is cached
of a token in a DBA layer is ``geo_dim + sem_dim + v_dim`` values: rotated geometric keys, semantic keys, value latents.
They stand in the cache of transformers as keys ``[B, 1, S, geo_dim + sem_dim]`` and values ``[B, 1, S, v_dim]``, and
are never expanded in decoding.  A layer with a window keeps its last tokens alone.

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
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import CausalLMOutputWithPast


class CarambaDBAConfig(PretrainedConfig):
    """``attentions`` are the different attentions of the model, ``attention_of_layer`` the index of each layer's."""

    model_type = "caramba_dba"

    def __init__(self, **kwargs: Any) -> None:
        sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), 0)
        others = {"rms_norm_eps": 1e-5, "mlp_bias": False, "attentions": [], "attention_of_layer": [], "caramba": {}}
        super().__init__(**{**sizes, **others, "max_position_embeddings": None, **kwargs})


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
        self.window: int | None = settings.get("window")

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

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
        """One fused call: queries ``[B, H, T, w]``, keys and values ``[B, G, S, w]``."""
        fixed = {"scale": self.scale, "enable_gqa": self.heads != self.groups}
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, **fixed)


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
        y = self.attend(query, key, value, mask, causal=mask is None and x.shape[1] > 1)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class DecoupledBottleneckAttention(Attention):
    """DBA: one fused call for the first pass, absorbed products with the compressed cache afterwards."""

    def __init__(self, settings: dict[str, Any], width: int, layer: int) -> None:
        super().__init__(settings, layer)
        self.geo_dim, self.sem_dim, self.v_dim = (settings[name] for name in ("geo_dim", "sem_dim", "v_dim"))
        self.shared_keys: bool = settings["k_layout"] == "shared"
        self.latent: bool = settings["v_layout"] == "latent"
        self.geo_width = self.geo_dim // self.groups
        self.sem_width = self.sem_dim if self.shared_keys else self.sem_dim // self.groups
        self.v_width = self.head_dim if self.latent else self.v_dim // self.groups
        each = (self.geo_dim, self.groups), (self.sem_dim, 1 if self.shared_keys else self.groups)
        self.key_groups = [groups for values, groups in each if values]
        self.null: bool = settings["null"]
        heads = self.heads
        if self.geo_dim:
            self.q_geo_proj = nn.Linear(width, heads * self.geo_width, bias=settings["q_bias"])
            self.k_geo_proj = nn.Linear(width, self.geo_dim, bias=settings["k_bias"])
            self.register_buffer("pairs", torch.zeros(self.groups, self.geo_width // 2, dtype=torch.int64))
        if self.sem_dim:
            if not settings["tied_semantic"]:
                self.q_sem_proj = nn.Linear(width, heads * self.sem_width, bias=settings["q_bias"])
            self.k_sem_proj = nn.Linear(width, self.sem_dim, bias=False)
        self.v_proj = nn.Linear(width, self.v_dim, bias=False)
        if self.latent:
            self.v_up_proj = nn.Linear(self.v_dim, self.groups * self.head_dim, bias=False)
        if settings["v_bias"]:
            self.v_bias = nn.Parameter(torch.zeros(self.groups * self.v_width))
        self.o_proj = nn.Linear(heads * self.v_width, width, bias=settings["o_bias"])
        if settings["gate"] == "static":
            self.gate = nn.Parameter(torch.zeros(heads))
        if settings["gate"] == "dynamic":
            self.gate_proj = nn.Linear(width, heads, bias=False)
        if settings["temperature"]:
            self.temperature = nn.Parameter(torch.zeros(heads))
        if self.null:
            self.null_key = nn.Parameter(torch.zeros(self.groups * self.sem_width)) if self.sem_dim else None
            self.null_bias = nn.Parameter(torch.zeros(heads))
            self.null_value = nn.Parameter(torch.zeros(self.groups * self.v_width))

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
            keys.append(self.k_sem_proj(x))
            if self.settings["tied_semantic"]:
                own = self.grouped(keys)[-1][:, :, None]
                queries.append(own.expand(-1, self.groups, self.heads // self.groups, -1, -1))
            else:
                queries.append(self.per_head(self.q_sem_proj(x)))
        return self.balanced(queries, x), keys

    def balanced(self, queries: list[Tensor], x: Tensor) -> list[Tensor]:
        """Gates ``[B or 1, G, m, T or 1, 1]`` weigh both paths, temperatures all scores, as factors of the queries."""
        factors: list[Any] = [1.0] * len(queries)
        if self.settings["gate"] != "none":
            dynamic = self.settings["gate"] == "dynamic"
            gate = self.per_head(self.gate_proj(x)) if dynamic else self.a_head(self.gate)
            factors = [2 * (-gate).sigmoid(), 2 * gate.sigmoid()]
        if self.settings["temperature"]:
            factors = [factor * self.a_head(self.temperature).exp() for factor in factors]
        return [(query * factor).to(query.dtype) for query, factor in zip(queries, factors, strict=True)]

    def a_head(self, x: Tensor) -> Tensor:
        """``[H] -> [G, m, 1, 1]``."""
        return x.view(self.groups, -1, 1, 1)

    def per_head(self, x: Tensor) -> Tensor:
        """``[B, T, H w] -> [B, G, m, T, w]``."""
        return x.unflatten(-1, (self.groups, self.heads // self.groups, -1)).permute(0, 2, 3, 1, 4)

    def grouped(self, keys: list[Tensor]) -> list[Tensor]:
        """Keys ``[B, S, *]`` as they are cached to ``[B, G, S, w]``, ``[B, 1, S, w]`` where one latent is for all."""
        return [key.unflatten(-1, (n, -1)).transpose(1, 2) for key, n in zip(keys, self.key_groups, strict=True)]

    def expanded(self, value: Tensor) -> Tensor:
        """``[B, S, v_dim] -> [B, G, S, v_width]``."""
        wide = self.per_group(self.v_up_proj(value) if self.latent else value)
        return wide + self.v_bias.view(self.groups, 1, -1) if self.settings["v_bias"] else wide

    def fused(self, queries: list[Tensor], keys: list[Tensor], value: Tensor, mask: Tensor | None) -> Tensor:
        """Everything padded with zeros to one width, for the flash kernels; nothing of it is cached."""
        width = -(-max(self.geo_width + self.sem_width + int(self.null), self.v_width) // 8) * 8
        each = [key.expand(-1, self.groups, -1, -1) for key in self.grouped(keys)]
        query, key, wide = torch.cat(queries, dim=-1), torch.cat(each, dim=-1), self.expanded(value)
        if self.null:
            query, key, wide = self.with_null(query, key, wide)
            mask = None if mask is None else F.pad(mask, (1, 0, 1, 0), value=True)
        query, key, wide = (F.pad(part, (0, width - part.shape[-1])) for part in (query, key, wide))
        y = self.attend(query.flatten(1, 2), key, wide, mask, causal=mask is None)
        return y[:, :, int(self.null) :, : self.v_width].transpose(1, 2).flatten(2)

    def with_null(self, query: Tensor, key: Tensor, wide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The null as a token in front, whose key alone has a one in a last column; queries have their bias there."""
        bias = (self.a_head(self.null_bias) / self.scale).to(query.dtype).expand(*query.shape[:-1], 1)
        query = F.pad(torch.cat([query, bias], dim=-1), (0, 0, 1, 0))
        null = key.new_zeros(self.groups, 1, key.shape[-1])
        if self.sem_dim:
            null = F.pad(self.null_key.view(self.groups, 1, -1), (self.geo_width, 0)).to(key.dtype)
        null = F.pad(null, (0, 1), value=1.0).expand(len(key), -1, -1, -1)
        first = self.null_value.view(self.groups, 1, -1).to(wide.dtype).expand(len(wide), -1, -1, -1)
        return query, torch.cat([null, F.pad(key, (0, 1))], dim=2), torch.cat([first, wide], dim=2)

    def absorbed(self, queries: list[Tensor], keys: list[Tensor], value: Tensor, mask: Tensor | None) -> Tensor:
        """Queries meet cached keys, probabilities mix cached values; only the mixture is expanded, once a head."""
        scores: Any = 0
        for query, key in zip(queries, self.grouped(keys), strict=True):
            product = query.reshape(*key.shape[:2], -1, key.shape[-1]) @ key.transpose(-1, -2)  # copies no key
            scores = scores + product.view(*query.shape[:-1], -1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.scale
        if mask is not None:
            scores = scores.masked_fill(~mask[:, :, None, :, -scores.shape[-1] :], float("-inf"))
        share: Any = 0.0  # of the null
        if self.null:
            null = self.a_head(self.null_bias).to(scores.dtype).expand(*scores.shape[:-1], 1)
            if self.sem_dim:
                null = null + (queries[-1] @ self.null_key.view(self.groups, 1, -1, 1)).to(scores.dtype) * self.scale
            scores = torch.cat([null, scores], dim=-1)
        probabilities = scores.softmax(dim=-1).to(value.dtype)
        if self.null:
            share, probabilities = probabilities[..., :1], probabilities[..., 1:]
        values = value[:, None] if self.latent else self.per_group(value)
        y = probabilities.reshape(*values.shape[:2], -1, values.shape[2]) @ values
        y = y.view(*probabilities.shape[:-1], -1)
        if self.latent:
            y = y @ self.v_up_proj.weight.view(self.groups, 1, self.head_dim, -1).transpose(-1, -2)
        if self.settings["v_bias"]:
            y = y + (1 - share) * self.v_bias.view(self.groups, 1, 1, -1)
        if self.null:
            y = y + share * self.null_value.view(self.groups, 1, 1, -1)
        return y.permute(0, 3, 1, 2, 4).flatten(2)


class DecoderLayer(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: CarambaDBAConfig, layer: int) -> None:
        super().__init__()
        settings = config.attentions[config.attention_of_layer[layer]]
        kind = DecoupledBottleneckAttention if settings["type"] == "dba" else GroupedQueryAttention
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = kind(settings, config.hidden_size, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
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
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


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

    def _prepare_cache_for_generation(self, settings: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trimmed before its first pass: assisted generation asks earlier which layers can take tokens back."""
        done = super()._prepare_cache_for_generation(settings, inputs, *args, **kwargs)
        past = inputs.get("past_key_values")
        if past is not None and past.get_seq_length() == 0:
            trim(past, self.windows)
            if settings.is_assistant and hasattr(past, "activate_past_recording"):
                past.activate_past_recording()
        return done

    @property
    def windows(self) -> list[int | None]:
        """Of each layer: the tokens that a token sees, itself included."""
        return [layer.self_attn.window for layer in self.model.layers]

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
        place = torch.arange(before, before + x.shape[1], device=x.device)
        if position_ids is None:
            position_ids = place[None]
            if attention_mask is not None:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, before:]
        past = past_key_values if use_cache is not False else None
        masks = {window: visible(place, before, attention_mask, window) for window in set(self.windows)}
        if past is not None and before == 0:
            trim(past, self.windows)
        hidden = [x]
        for layer, window in zip(self.model.layers, self.windows, strict=True):
            x = layer(x, position_ids, masks[window], past)
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


def trim(past: Any, windows: list[int | None]) -> None:
    """Let an empty cache hold a window's last tokens alone: transformers' own layer holds one less than its size."""
    for index, window in enumerate(windows):
        if index == len(past.layers):
            past.layers.append(past.layer_class_to_replicate())
        if window is not None and type(past.layers[index]) is DynamicLayer:
            past.layers[index] = DynamicSlidingWindowLayer(sliding_window=window + 1)


def visible(place: Tensor, before: int, attention_mask: Tensor | None, window: int | None) -> Tensor | None:
    """Bool ``[1 or B, 1, T, S]``: what the new tokens, at ``place``, see; ``None`` where plain causality says it."""
    tokens, context = len(place), before + len(place)
    padded = attention_mask is not None and not bool(attention_mask.all())
    window = context if window is None else window
    if not padded and window >= context and (before == 0 or tokens == 1):
        return None
    query, key = place[:, None], torch.arange(context, device=place.device)
    mask = ((key <= query) & (key > query - window))[None, None]
    if padded:
        mask = mask & attention_mask[:, None, None, :context].bool() | (key == query)
    return mask


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs ``(p, p + n)`` of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
