"""Decoders with Decoupled Bottleneck Attention for transformers, in one file.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

A layer's attention is DBA or, in models that were converted in part, ordinary grouped-query attention.  What is cached
of a token in a DBA layer is ``geo_dim + sem_dim + v_dim`` values: rotated geometric keys, semantic keys, value latents.
They stand in the cache of transformers as keys ``[B, 1, S, geo_dim + sem_dim]`` and values ``[B, 1, S, v_dim]``.  Token
by token they are never expanded.  A layer with a window keeps its last tokens, and the first ones of the text that are
its sinks.

    score_h(t, s) = scale * ( <q_sem_h(t), k_sem(s)> + <R q_geo_h(t), R k_geo_g(h)(s)> )

With ``latent: joint`` each head's semantic keys are read from the value latent.  An attention whose ``cache`` has
``bits`` (8 or 4) and a ``block`` was trained with what it caches rounded: it stands in the cache as bytes, codes and
then a step and a least value in float16 for every ``block`` values, and is read back in every pass.

Masks, losses, caches and outputs are those of transformers' own Llama.  Every weight matrix is used through the
forward of its module, so that adapters and quantized modules take effect.  Attention runs as ``sdpa`` or ``eager``.

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
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import can_return_tuple

MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["caramba_dba"] = "CarambaDBAForCausalLM"
"""Trainer shifts labels for label smoothing by this list alone, and not for models that are missing in it."""


class CarambaDBAConfig(PretrainedConfig):
    """``attentions`` are the different attentions of the model, ``attention_of_layer`` the index of each layer's."""

    model_type = "caramba_dba"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(self, use_cache: bool = True, **kwargs: Any) -> None:
        sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), 0)
        others = {"rms_norm_eps": 1e-5, "mlp_bias": False, "attentions": [], "attention_of_layer": [], "caramba": {}}
        super().__init__(**{**sizes, **others, **kwargs})
        self.use_cache = use_cache


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


class Visibility:
    """Which of the tokens seen each new token attends to: causality, padding, windows, packed sequences."""

    def __init__(
        self, before: int, x: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> None:
        axes = None if attention_mask is None else attention_mask.dim()
        whole = axes == 4 and attention_mask.dtype != torch.bool and not attention_mask.is_floating_point()
        if axes not in (None, 2, 4) or whole:
            raise ValueError(
                f"attention_mask has {axes} axes of {attention_mask.dtype}; expected [batch, seen], with zeros for "
                "padding, or [batch, 1 or heads, tokens, seen], with True, or 0.0 as a term of scores, for what is seen"
            )
        self.before = before
        self.tokens = x.shape[1]
        self.given = attention_mask if axes == 4 else None
        self.padding = None
        if axes == 2:
            reached = attention_mask[:, : before + self.tokens]
            if reached.shape[1] < before + self.tokens or not bool(reached.all()):
                self.padding = attention_mask
        self.sequences = packed(position_ids) if attention_mask is None and before == 0 else None
        self._masks: dict[tuple[int | None, int, int], Tensor | None] = {}

    def mask(self, window: int | None, sinks: int, seen: int, device: torch.device) -> Tensor | None:
        """``[1 or B, 1 or H, T, S]`` of ``seen`` tokens, bool or a term of the scores; ``None`` is causal.

        These are the last ones; where there were more and a window has ``sinks``, the first of them are the text's.
        """
        if (window, sinks, seen) not in self._masks:
            self._masks[window, sinks, seen] = self._mask(window, sinks, seen, device)
        mask = self._masks[window, sinks, seen]
        return None if mask is None else mask.to(device)

    def _mask(self, window: int | None, sinks: int, seen: int, device: torch.device) -> Tensor | None:
        context = self.before + self.tokens
        narrow = window is not None and window + sinks < context
        plain = self.given is None and self.padding is None and self.sequences is None
        if plain and not narrow and (self.before == 0 or self.tokens == 1):
            return None
        query = torch.arange(self.before, context, device=device)[:, None]
        key = torch.arange(context - seen, context, device=device)
        if seen < context:
            key[:sinks] = torch.arange(sinks, device=device)
        within = key > query - window if narrow else torch.ones_like(key, dtype=torch.bool)
        if narrow and sinks and self.sequences is None:
            if self.padding is not None and not bool(self.padding[:, :sinks].all()):
                raise ValueError(
                    "attention_mask pads the beginning of a row, and a window with sinks keeps the first tokens of the "
                    "text: pad at the end, or take rows of one length"
                )
            within = within | (key < sinks)
        if self.given is not None:
            given = self._columns(self.given.to(device), key)
            hidden = False if given.dtype == torch.bool else torch.finfo(given.dtype).min
            return given.masked_fill(~within, hidden) if narrow else given
        if self.sequences is not None:
            sequences = self.sequences.to(device)
            if narrow and sinks:  # each has its own
                starts = torch.searchsorted(sequences.contiguous(), sequences.contiguous())
                within = within | (key - starts < sinks)[:, None, None, :]
            mask = (key <= query) & within & (sequences[:, None, :, None] == sequences[:, None, None, :])
        else:
            mask = ((key <= query) & within)[None, None]
        if self.padding is not None:
            padding = self._columns(self.padding.to(device).bool(), key)
            mask = mask & padding[:, None, None, :] | (key == query)  # padding sees itself: no row is empty
        return mask

    def _columns(self, mask: Tensor, key: Tensor) -> Tensor:
        """The columns of tokens ``key``; what a mask does not reach is hidden."""
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        mask = F.pad(mask, (0, max(0, self.before + self.tokens - mask.shape[-1])), value=hidden)
        return mask[..., key]


class Attention(nn.Module):
    """What both attentions share: rotary positions, the cache, the fused call."""

    def __init__(self, config: CarambaDBAConfig, settings: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.config = config
        self.settings = settings
        self.layer = layer
        self.heads: int = settings["n_heads"]
        self.groups: int = settings["n_kv_heads"]
        self.head_dim: int = settings["head_dim"]
        self.scale: float = settings["scale"]
        self.window: int | None = settings.get("window")
        self.sinks: int = settings.get("sinks", 0)
        self.storage: dict[str, int] | None = settings.get("cache")

    def cos_sin(self, x: Tensor, positions: Tensor, pairs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``[B, 1 or G, T, n]`` in float32 at least: positions in half precision would lose the order of tokens."""
        wide = torch.promote_types(x.dtype, torch.float32)
        frequencies = torch.tensor(self.settings["frequencies"], dtype=wide, device=x.device)
        frequencies = frequencies[None] if pairs is None else frequencies[pairs]
        angles = positions.to(x.device)[:, None, :, None].to(wide) * frequencies[None, :, None, :]
        factor: float = self.settings["frequency_scaling"]
        return angles.cos() * factor, angles.sin() * factor

    def per_group(self, x: Tensor) -> Tensor:
        """``[B, T, G w] -> [B, G, T, w]``."""
        return x.unflatten(-1, (self.groups, -1)).transpose(1, 2)

    def cached(self, key: Tensor, value: Tensor, past: Any, before: int) -> tuple[Tensor, Tensor]:
        """New keys and values ``[B, *, T, w]`` into the cache; these and those that it holds, ``[B, *, S, w]``."""
        if past is None:
            return key, value
        layer = past.layers[self.layer] if self.layer < len(past.layers) else None
        widths = key.shape[-1], value.shape[-1]
        group = getattr(layer, "q_group_size", 1)  # a quantized cache takes widths of whole groups
        if self.storage is not None and group != 1:
            raise ValueError(
                f"layer {self.layer} caches {self.storage['bits']} bits a value by itself, which a quantized cache "
                'would quantize again; take another cache, or set "cache" to null in the attentions of config.json'
            )
        key, value = (F.pad(x, (0, -x.shape[-1] % group)) for x in (key, value))
        held = getattr(layer, "keys", None)
        if held is not None and held.dim() == 4 and (held.shape[1], held.shape[-1]) != (key.shape[1], key.shape[-1]):
            if before:
                raise ValueError(
                    f"the cache of layer {self.layer} holds keys of {held.shape[1]} heads and width {held.shape[-1]}, "
                    f"and this model's have {key.shape[1]} and {key.shape[-1]}: a cache, or a prefix (prefix tuning), "
                    "that was made for another attention does not fit"
                )
            layer.is_initialized = False  # room that generate made by the configuration's head_dim
        place = torch.arange(before, before + key.shape[-2], device=key.device)  # static caches of 5.0 read it
        keys, values = past.update(key, value, self.layer, {"cache_position": place})
        if before == 0:
            keys, values = key, value
        seen = min(before + key.shape[-2], keys.shape[-2])  # a static cache has room behind them
        return keys[..., :seen, : widths[0]], values[..., :seen, : widths[1]]

    def side_by_side(self, entries: list[Tensor], past: Any, before: int) -> list[Tensor]:
        """What a token caches ``[B, T, w]``, keys and at last values, through the cache: ``[B, S, w]`` each."""
        *keys, value = entries
        if not keys:  # values alone stand as keys: by these a cache counts its tokens
            key, _ = self.cached(value[:, None], value[:, None, :, :0], past, before)
            return [key[:, 0]]
        key, value = self.cached(torch.cat(keys, dim=-1)[:, None], value[:, None], past, before)
        return [*key[:, 0].split([one.shape[-1] for one in keys], dim=-1), value[:, 0]]

    def read_back(self, entries: list[Tensor], past: Any, before: int) -> list[Tensor]:
        """What a token caches ``[B, T, w]``, keys and at last values, rounded as it is stored: ``[B, S, w]`` each.

        Gradients of this pass's tokens go as if nothing was rounded.
        """
        bits, block = self.storage["bits"], self.storage["block"]
        stored = self.side_by_side([encode(entry, bits, block) for entry in entries], past, before)
        found = []
        for entry, kept in zip(entries, stored, strict=True):
            read = decode(kept, entry.shape[-1], bits, block).to(entry.dtype)
            if torch.is_grad_enabled() and entry.requires_grad:
                past_tokens, own = read[:, : -entry.shape[1]], read[:, -entry.shape[1] :]
                read = torch.cat([past_tokens, own + (entry - entry.detach())], dim=1)
            found.append(read)
        return found

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """One fused call: queries ``[B, H, T, w]``, keys and values ``[B, G, S, w]``."""
        fixed = {"scale": self.scale, "enable_gqa": self.heads != self.groups}
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(query.dtype)
        causal = mask is None and query.shape[2] == key.shape[2]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, **fixed)

    def masked(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        """Scores ``[B, G, m, T, S]`` under a mask; causal where there is none."""
        if mask is None:
            tokens, seen = scores.shape[-2:]
            mask = torch.ones(1, 1, tokens, seen, dtype=torch.bool, device=scores.device).tril(seen - tokens)
        mask = mask[:, :, None] if mask.shape[1] == 1 else mask.unflatten(1, (self.groups, -1))
        if mask.dtype == torch.bool:
            return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores + mask.to(scores.dtype)

    @property
    def eager(self) -> bool:
        """Whether scores are computed one by one even where a fused call would do."""
        return self.config._attn_implementation == "eager"


class GroupedQueryAttention(Attention):
    """Ordinary attention, for layers that were not converted, or see a window and the first tokens alone."""

    def __init__(self, config: CarambaDBAConfig, settings: dict[str, Any], layer: int) -> None:
        super().__init__(config, settings, layer)
        width, bias = config.hidden_size, settings["qkv_bias"]
        queries, keys = self.heads * self.head_dim, self.groups * self.head_dim
        self.q_proj = nn.Linear(width, queries, bias=bias)
        self.k_proj = nn.Linear(width, keys, bias=bias)
        self.v_proj = nn.Linear(width, keys, bias=bias)
        self.o_proj = nn.Linear(queries, width, bias=settings["o_bias"])

    def forward(
        self, x: Tensor, positions: Tensor, visibility: Visibility, past: Any = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, T, D] -> [B, T, D]``, and probabilities ``[B, H, T, S]`` if asked for; ``positions`` ``[B, T]``."""
        query = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.per_group(self.k_proj(x)), self.per_group(self.v_proj(x))
        if self.settings["frequencies"]:
            cos, sin = self.cos_sin(x, positions)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if self.storage is None:
            key, value = self.cached(key, value, past, visibility.before)
        else:
            entries = [one.transpose(1, 2).flatten(2) for one in (key, value)]
            key, value = (self.per_group(one) for one in self.read_back(entries, past, visibility.before))
        mask = visibility.mask(self.window, self.sinks, key.shape[2], x.device)
        if not (self.eager or output_attentions):
            y = self.attend(query, key, value, mask)
            return self.o_proj(y.transpose(1, 2).flatten(2)), None
        scores = query.unflatten(1, (self.groups, -1)) @ key[:, :, None].transpose(-1, -2) * self.scale
        scores = self.masked(scores.to(torch.promote_types(scores.dtype, torch.float32)), mask)
        probabilities = scores.softmax(dim=-1).to(value.dtype)
        y = (probabilities @ value[:, :, None]).permute(0, 3, 1, 2, 4).flatten(2)
        return self.o_proj(y), probabilities.flatten(1, 2) if output_attentions else None


class DecoupledBottleneckAttention(Attention):
    """DBA: one fused call for many tokens, absorbed products with the compressed cache for few."""

    def __init__(self, config: CarambaDBAConfig, settings: dict[str, Any], layer: int) -> None:
        super().__init__(config, settings, layer)
        width = config.hidden_size
        self.geo_dim, self.sem_dim, self.v_dim = (settings[name] for name in ("geo_dim", "sem_dim", "v_dim"))
        self.shared_keys: bool = settings["k_layout"] == "shared"
        self.latent: bool = settings["v_layout"] == "latent"
        self.joint: bool = settings.get("latent") == "joint"
        geo_groups = 1 if settings.get("geo_layout") == "shared" else self.groups
        self.geo_width = self.geo_dim // geo_groups
        self.sem_width = self.sem_dim if self.shared_keys else self.sem_dim // self.groups
        if self.joint:
            self.sem_width = self.head_dim
        self.v_width = self.head_dim if self.latent else self.v_dim // self.groups
        each = (self.geo_dim, geo_groups), (self.sem_dim, 1 if self.shared_keys else self.groups)
        self.key_groups = [groups for values, groups in each if values]
        self.null: bool = settings["null"]
        heads = self.heads
        if self.geo_dim:
            self.q_geo_proj = nn.Linear(width, heads * self.geo_width, bias=settings["q_bias"])
            self.k_geo_proj = nn.Linear(width, self.geo_dim, bias=settings["k_bias"])
            kept, available = self.geo_width // 2, self.head_dim // 2
            spread = torch.arange(kept) * available // kept
            self.register_buffer("pairs", spread.repeat(geo_groups, 1))
        if self.sem_dim:
            if not settings["tied_semantic"]:
                self.q_sem_proj = nn.Linear(width, heads * self.sem_width, bias=settings["q_bias"])
            self.k_sem_proj = nn.Linear(width, self.sem_dim, bias=False)
        if self.joint:
            self.q_sem_proj = nn.Linear(width, heads * self.sem_width, bias=settings["q_bias"])
            self.k_up_proj = nn.Linear(self.v_dim, self.groups * self.head_dim, bias=False)
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

    def forward(
        self, x: Tensor, positions: Tensor, visibility: Visibility, past: Any = None, output_attentions: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, T, D] -> [B, T, D]``, and probabilities ``[B, H, T, S]`` if asked for; ``positions`` ``[B, T]``."""
        queries, keys = self.queries_and_keys(x, positions)
        entries = [*keys, self.v_proj(x)]
        if self.storage is not None:
            *keys, value = self.read_back(entries, past, visibility.before)
        else:
            *keys, value = self.side_by_side(entries, past, visibility.before)
        mask = visibility.mask(self.window, self.sinks, value.shape[1], x.device)
        if not (self.eager or output_attentions or self.few(x.shape[1], value.shape[1])):
            return self.o_proj(self.fused(queries, keys, value, mask)), None
        y, probabilities = self.explicit(queries, keys, value, mask)
        return self.o_proj(y), probabilities if output_attentions else None

    def few(self, tokens: int, seen: int) -> bool:
        """Whether it takes less to expand the mixture of every query head than every value that is seen."""
        return tokens * self.heads < seen

    def queries_and_keys(self, x: Tensor, positions: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Queries ``[B, G, m, T, w]`` and keys ``[B, T, geo_dim]``, ``[B, T, sem_dim]`` as they are cached."""
        queries, keys = [], []
        if self.geo_dim:
            cos, sin = self.cos_sin(x, positions, self.pairs)
            queries.append(rotate(self.per_head(self.q_geo_proj(x)), cos[:, :, None], sin[:, :, None]))
            key = self.k_geo_proj(x).unflatten(-1, (-1, self.geo_width)).transpose(1, 2)
            keys.append(rotate(key, cos, sin).transpose(1, 2).flatten(2))
        if self.sem_dim:
            keys.append(self.k_sem_proj(x))
            if self.settings["tied_semantic"]:
                own = self.grouped(keys)[-1][:, :, None]
                queries.append(own.expand(-1, self.groups, self.heads // self.groups, -1, -1))
            else:
                queries.append(self.per_head(self.q_sem_proj(x)))
        if self.joint:
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
        if self.joint:
            each.append(self.per_group(self.k_up_proj(value)))
        query, key, wide = torch.cat(queries, dim=-1), torch.cat(each, dim=-1), self.expanded(value)
        if self.null:
            query, key, wide = self.with_null(query, key, wide)
            mask = None if mask is None else F.pad(mask, (1, 0, 1, 0), value=mask.dtype == torch.bool)
        query, key, wide = (F.pad(part, (0, width - part.shape[-1])) for part in (query, key, wide))
        y = self.attend(query.flatten(1, 2), key, wide, mask)
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

    def explicit(
        self, queries: list[Tensor], keys: list[Tensor], value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mixed values ``[B, T, H v_width]`` and probabilities ``[B, H, T, S]``, of which the null takes a part.

        Queries meet the keys as they are cached.  Where queries are few, probabilities mix values as they are cached,
        and only the mixtures are expanded.
        """
        scores: Any = 0
        met = self.grouped(keys)
        if self.joint:
            *queries, semantic = queries
            query, key = self.meeting(semantic, value)
            queries, met = [*queries, query], [*met, key]
        for query, key in zip(queries, met, strict=True):
            product = query.reshape(*key.shape[:2], -1, key.shape[-1]) @ key.transpose(-1, -2)  # copies no key
            scores = scores + product.view(*query.shape[:-1], -1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.scale
        scores = self.masked(scores, mask)
        shares = scores.softmax(dim=-1)
        mixed = shares.to(value.dtype)
        if self.latent and self.few(mixed.shape[-2], mixed.shape[-1]):
            y = (mixed.flatten(1, 3) @ value).view(*mixed.shape[:-1], -1)
            y = self.v_up_proj(y).unflatten(-1, (self.groups, -1))  # of each head, for every group: its own counts
            y = y.diagonal(dim1=1, dim2=-2).movedim(-1, 1)
        else:
            wide = self.per_group(self.v_up_proj(value) if self.latent else value)
            y = (mixed.flatten(2, 3) @ wide).view(*mixed.shape[:-1], -1)
        if self.settings["v_bias"]:
            y = y + self.v_bias.view(self.groups, 1, 1, -1)
        if self.null:
            null = self.a_head(self.null_bias).to(scores.dtype)
            if self.sem_dim:
                null = null + (queries[-1] @ self.null_key.view(self.groups, 1, -1, 1)).to(scores.dtype) * self.scale
            kept = (scores.logsumexp(dim=-1, keepdim=True) - null).sigmoid()  # by the tokens, the rest by the null
            shares = shares * kept
            y = kept.to(y.dtype) * y + (1 - kept).to(y.dtype) * self.null_value.view(self.groups, 1, 1, -1)
        return y.permute(0, 3, 1, 2, 4).flatten(2), shares.to(value.dtype).flatten(1, 2)

    def meeting(self, query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic queries ``[B, G, m, T, w]`` and what they meet of latents ``[B, S, r]``: ``[B, G or 1, S, w]``.

        Few queries are taken into the latent, which all heads read as it is cached; for many its keys are expanded.
        """
        batch, seen, rank = value.shape
        if not self.few(query.shape[-2], seen) or batch * seen <= rank:
            return query, self.per_group(self.k_up_proj(value))
        each = torch.eye(rank, dtype=value.dtype, device=value.device)
        up = self.k_up_proj(each).view(rank, self.groups, -1).permute(1, 2, 0)  # what the module multiplies by
        return query @ up[:, None], value[:, None]


class DecoderLayer(GradientCheckpointingLayer):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: CarambaDBAConfig, layer: int) -> None:
        super().__init__()
        settings = config.attentions[config.attention_of_layer[layer]]
        kind = DecoupledBottleneckAttention if settings["type"] == "dba" else GroupedQueryAttention
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = kind(config, settings, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        visibility: Visibility,
        past_key_values: Any = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """``[B, T, D] -> [B, T, D]``, and probabilities ``[B, H, T, S]`` if asked for; ``positions`` ``[B, T]``."""
        y, probabilities = self.self_attn(
            self.input_layernorm(x), positions, visibility, past_key_values, output_attentions
        )
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), probabilities


class CarambaDBAPreTrainedModel(PreTrainedModel):
    """What transformers knows of these models."""

    config_class = CarambaDBAConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True


class CarambaDBAModel(CarambaDBAPreTrainedModel):
    """Embeddings, layers, norm."""

    def __init__(self, config: CarambaDBAConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @property
    def windows(self) -> list[tuple[int | None, int]]:
        """Of each layer: the last tokens that a token sees, itself included, and the first ones."""
        return [(layer.self_attn.window, layer.self_attn.sinks) for layer in self.layers]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As of :class:`CarambaDBAForCausalLM`, without the head."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if use_cache is None:
            use_cache = self.config.use_cache
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None and not (self.gradient_checkpointing and self.training):
            past_key_values = DynamicCache()
        before = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if past_key_values is not None and before == 0:
            trim(past_key_values, self.windows)
        visibility = Visibility(before, x, attention_mask, position_ids)
        if position_ids is None:
            position_ids = torch.arange(before, before + x.shape[1], device=x.device)[None]
        hidden, attentions = [x], []
        for layer in self.layers:
            x, probabilities = layer(
                x, position_ids, visibility, past_key_values=past_key_values, output_attentions=output_attentions
            )
            hidden.append(x)
            attentions.append(probabilities)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=selected([*hidden[:-1], x], output_hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )


class CarambaDBAForCausalLM(CarambaDBAPreTrainedModel, GenerationMixin):
    """The model with its head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: CarambaDBAConfig) -> None:
        super().__init__(config)
        self.model = CarambaDBAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @staticmethod
    def create_masks_for_generate(*, attention_mask: Tensor | None, **others: Any) -> Tensor | None:
        """The mask as it is: the model makes those that static caches need, as windows differ by layer."""
        return attention_mask

    def _prepare_cache_for_generation(self, settings: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trimmed before its first pass: assisted generation asks earlier which layers can take tokens back."""
        done = super()._prepare_cache_for_generation(settings, inputs, *args, **kwargs)
        past = inputs.get("past_key_values")
        if past is not None and past.get_seq_length() == 0:
            trim(past, self.model.windows)
            if settings.is_assistant and hasattr(past, "activate_past_recording"):
                past.activate_past_recording()
        return done

    def _valid_auto_compile_criteria(self, *args: Any, **kwargs: Any) -> bool:
        """Static caches run uncompiled: how a token is computed depends on how many there are."""
        return False

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: paged caches are read by kernels for keys and values of ordinary attention."""
        raise NotImplementedError("DBA does not support continuous batching (generate_batch): its cache is not paged")

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | int | list[int] | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As every causal model of transformers.

        ``attention_mask`` is ``[B, S]`` with zeros for padding, or ``[B, 1 or H, T, S]``, bool or a term of the scores,
        in the place of causality.  ``position_ids`` ``[B, T]`` that do not run on start another sequence, which sees
        nothing of those before it, where there is no mask and no earlier token.  Further arguments, such as
        ``num_items_in_batch``, go to the loss function.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def encode(values: Tensor, bits: int, block: int) -> Tensor:
    """``[B, T, w]`` as bytes ``[B, T, n]``: codes, in 4 bits two a byte, then step and least value of each block."""
    width = values.shape[-1]
    block = min(block, width)
    wide = torch.cat([values, values[..., -1:].expand(*values.shape[:-1], -width % block)], dim=-1).detach()
    wide = wide.to(torch.promote_types(wide.dtype, torch.float32)).unflatten(-1, (-1, block))
    most = 2**bits - 1
    least = wide.amin(-1).half()
    step = ((wide.amax(-1) - least) / most).half()
    spread = torch.where(step > 0, step, 1.0).to(wide.dtype)
    codes = ((wide - least[..., None]) / spread[..., None]).round().clamp(0, most).to(torch.uint8)
    codes = codes.flatten(-2)[..., :width]
    if bits == 4:
        codes = F.pad(codes, (0, width % 2))
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    scales = torch.stack([step, least], dim=-1).flatten(-2).contiguous()
    return torch.cat([codes, scales.view(torch.uint8)], dim=-1)


def decode(stored: Tensor, width: int, bits: int, block: int) -> Tensor:
    """The ``w`` values ``[B, S, w]`` of :func:`encode`, in float32."""
    block = min(block, width)
    codes, scales = stored.split([-(-width * bits // 8), 4 * -(-width // block)], dim=-1)
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)[..., :width]
    step, least = scales.contiguous().view(torch.float16).unflatten(-1, (-1, 2)).float().unbind(-1)
    step, least = (part.repeat_interleave(block, -1)[..., :width] for part in (step, least))
    return torch.addcmul(least, step, codes)


class SinksAndWindow(DynamicSlidingWindowLayer):
    """The cache of the first ``sinks`` tokens of a text and the last ``window``."""

    record_past = False  # versions of transformers that can take tokens back set it

    def __init__(self, sinks: int, window: int) -> None:
        super().__init__(sliding_window=window + 1)
        self.sinks, self.window = sinks, window

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append ``[B, *, T, w]``; what these tokens may see: the sinks, then as many last ones as there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[-2]
        self.cumulative_length += new
        key, value = (torch.cat(each, dim=-2) for each in ((self.keys, key_states), (self.values, value_states)))
        kept = key.shape[-2] if self.record_past else self.window
        self.keys, self.values = (self.ends(whole, kept) for whole in (key, value))
        return self.ends(key, self.window + new), self.ends(value, self.window + new)

    def ends(self, whole: Tensor, last: int) -> Tensor:
        """The sinks and the ``last`` tokens of ``[B, *, S, w]``."""
        if whole.shape[-2] <= self.sinks + last:
            return whole
        return torch.cat([whole[..., : self.sinks, :], whole[..., whole.shape[-2] - last :, :]], dim=-2)

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last ``-tokens_to_remove`` tokens back; raises :class:`RuntimeError` where older ones are gone."""
        if tokens_to_remove > 0:  # versions of transformers that take nothing back from any window ask for a length
            raise ValueError(f"crop({tokens_to_remove}): a window takes a number of tokens back, which is negative")
        if not self.is_initialized:
            return
        removed = -tokens_to_remove
        left = self.cumulative_length - removed
        if removed and self.keys.shape[-2] - removed < min(left, self.sinks + self.window):
            raise RuntimeError(
                f"{removed} tokens cannot be taken back: those that come into the window again were dropped; call "
                "activate_past_recording before"
            )
        stop = self.keys.shape[-2] - removed
        self.keys, self.values = (self.ends(whole[..., :stop, :], self.window) for whole in (self.keys, self.values))
        self.cumulative_length = left


def trim(past: Any, windows: list[tuple[int | None, int]]) -> None:
    """Let an empty cache hold a window's last tokens alone: transformers' own layer holds one less than its size."""
    for index, (window, sinks) in enumerate(windows):
        if index == len(past.layers):
            if past.layer_class_to_replicate is None:
                return
            past.layers.append(past.layer_class_to_replicate())
        if window is not None and type(past.layers[index]) is DynamicLayer:
            ring = SinksAndWindow(sinks, window) if sinks else DynamicSlidingWindowLayer(sliding_window=window + 1)
            past.layers[index] = ring


def selected(states: list[Tensor], which: bool | int | list[int]) -> tuple[Tensor | None, ...]:
    """All hidden states, or those of some indices, and ``None`` for the others."""
    if isinstance(which, bool):
        return tuple(states)
    count, indices = len(states), [which] if isinstance(which, int) else which
    wanted = {index % count for index in indices if -count <= index < count}
    return tuple(state if index in wanted else None for index, state in enumerate(states))


def packed(position_ids: Tensor | None) -> Tensor | None:
    """The sequence that each token is of, ``[1 or B, T]``; ``None`` where every row is one, whose positions run on."""
    if position_ids is None:
        return None
    sequences = (position_ids.diff(dim=-1, prepend=position_ids[:, :1] - 1) != 1).cumsum(dim=-1)
    return sequences if bool(sequences.any()) else None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs ``(p, p + n)`` of the last axis."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
