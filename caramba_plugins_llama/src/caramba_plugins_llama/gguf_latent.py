"""Latent attentions in llama.cpp's architecture ``deepseek2``: its tensors, and what they fill.

llama.cpp keeps what heads read as keys transposed, apart from what they read as values, so that a step never expands
the cache.  But for models of 26 or 27 layers it wants queries to come from a normalized latent of their own; here that
latent is the input itself (``attn_q_a`` the identity), which is normalized already.  With a mean square ``s`` of the
residual stream the second norm makes queries larger by ``eps / 2 s`` of themselves: 4e-4 in the first layer of
SmolLM2-135M, 5e-6 and less behind it.

Axes: H heads, d width of a head without positions, r rank, D width of the residual stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
from caramba_plugins_standard.loading import Stored

from caramba_core.errors import InputError
from caramba_plugins_llama.gguf_header import GgufTensor
from caramba_plugins_llama.latent_rows import LatentRows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LatentFile"]

_OUTSIDE: Final = {
    "token_embd.weight": "embedder.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
}
_BLOCK: Final = {
    "attn_norm.weight": ("norm.weight",),
    "attn_q_a.weight": (),
    "attn_q_a_norm.weight": (),
    "attn_q.weight": ("attention.q_proj", "attention.q_rope_proj"),
    "attn_q_b.weight": ("attention.q_proj", "attention.q_rope_proj"),
    "attn_kv_a_mqa.weight": ("attention.kv_down_proj", "attention.k_rope_proj"),
    "attn_kv_a_norm.weight": ("attention.latent_norm",),
    "attn_k_b.weight": ("attention.k_up_proj",),
    "attn_v_b.weight": ("attention.v_up_proj",),
    "attn_output.weight": ("attention.o_proj",),
    "ffn_norm.weight": ("norm_2.weight",),
    "ffn_gate.weight": ("mlp.gate_proj",),
    "ffn_up.weight": ("mlp.up_proj",),
    "ffn_down.weight": ("mlp.down_proj",),
}
_PLAIN_QUERIES: Final = (26, 27)
"""Numbers of layers that llama.cpp takes for DeepSeek-V2-Lite and its like, whose queries have no latent."""
_PLAIN_QUERIES_TOO: Final = (48, 128256)
"""And layers and vocabulary of another."""

_ROUNDING: Final = 1e-6
_PARTS: Final = re.compile(r"blk\.(\d+)\.(.+)")


@attrs.frozen(kw_only=True)
class LatentFile:
    """The sizes of a file's model: layers, vocabulary, width, what is added to mean squares, and rows of attentions."""

    layers: int
    vocabulary: int
    width: int
    eps: float
    rows: LatentRows

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LatentFile:
        """From a configuration in Hugging Face's words."""
        rows = LatentRows(
            heads=config["num_attention_heads"],
            content=config["qk_nope_head_dim"],
            rotary=config["qk_rope_head_dim"],
            rank=config["kv_lora_rank"],
        )
        return cls(
            layers=config["num_hidden_layers"],
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            eps=config["rms_norm_eps"],
            rows=rows,
        )

    @property
    def latent_queries(self) -> bool:
        """Whether llama.cpp wants queries from a latent of their own."""
        return self.layers not in _PLAIN_QUERIES and (self.layers, self.vocabulary) != _PLAIN_QUERIES_TOO

    def metadata(self) -> dict[str, Any]:
        """The sizes in llama.cpp's words."""
        rows = self.rows
        return {
            "attention.head_count_kv": 1,
            "attention.key_length": rows.rank + rows.rotary,
            "attention.value_length": rows.rank,
            "attention.key_length_mla": rows.content + rows.rotary,
            "attention.value_length_mla": rows.content,
            "attention.kv_lora_rank": rows.rank,
            "rope.dimension_count": rows.rotary,
            "leading_dense_block_count": self.layers,
            "expert_count": 0,
            "expert_used_count": 0,
            "expert_shared_count": 0,
            "expert_feed_forward_length": 1,
            "expert_weights_scale": 1.0,
            **({"attention.q_lora_rank": self.width} if self.latent_queries else {}),
        }

    def name(self, key: str) -> str | None:
        """The parameter that a tensor fills, the first of several; ``None`` where none needs it."""
        names = self._names(key)
        return key if names is None else next(iter(names), None)

    def _names(self, key: str) -> tuple[str, ...] | None:
        if key in _OUTSIDE:
            return (_OUTSIDE[key],)
        found = _PARTS.fullmatch(key)
        if found is None or found[2] not in _BLOCK:
            return None
        return tuple(f"blocks.{int(found[1])}.{name}" for name in _BLOCK[found[2]])

    def layout(self, stored: tuple[Stored, ...]) -> tuple[Stored, ...]:
        """What tensors fill, each parameter once, and the rotary pairs, which no file holds."""
        made = []
        for one in stored:
            for name in self._names(one.key) or (one.name,):
                shape, span = self._shape(one.key, name, one.shape), one.span
                several = shape != one.shape
                key = f"{one.key} ({name.rpartition('.')[2]})" if name and several else one.key
                made.append(attrs.evolve(one, key=key, name=name, shape=shape, span=None if several else span))
        return (*made, *self._pairs())

    def _pairs(self) -> Iterator[Stored]:
        for block in range(self.layers):
            name = f"blocks.{block}.attention.pairs"
            yield Stored(key=f"rope, layer {block}", name=name, shape=(self.rows.rotary // 2,), dtype="int64")

    def _shape(self, key: str, name: str | None, stored: tuple[int, ...]) -> tuple[int, ...]:
        if name is not None and len(self._names(key) or ()) > 1:
            return self.rows.shape(name.rpartition(".")[2], stored)
        if len(stored) == 3 and key.endswith(("attn_k_b.weight", "attn_v_b.weight")):
            heads, first, second = stored
            return (heads * second, first) if key.endswith("attn_k_b.weight") else (heads * first, second)
        return stored

    def filled(self, stored: Iterable[tuple[GgufTensor, Tensor]], path: str) -> Iterator[tuple[str, Tensor]]:
        """The parameters of tensors; raises :class:`InputError` where a latent of queries is another than the input."""
        import torch

        for tensor, values in stored:
            names = self._names(tensor.name) or ()
            if self.latent_queries and tensor.name.endswith("attn_norm.weight"):
                self._require(bool((values == 1).all()), tensor.name, path)
            if not names:
                self._require(self._is_input(tensor.name, values), tensor.name, path)
            for name in names:
                if tensor.name.endswith("attn_k_b.weight"):
                    yield name, values.transpose(1, 2).flatten(0, 1)
                elif tensor.name.endswith("attn_v_b.weight"):
                    yield name, values.flatten(0, 1)
                else:
                    yield name, self.rows.taken(name.rpartition(".")[2], values) if len(names) > 1 else values
        for pairs in self._pairs():
            yield str(pairs.name), torch.arange(pairs.shape[0])

    def _is_input(self, key: str, values: Tensor) -> bool:
        """Whether the latent of queries, and its norm, are what the file of an export has."""
        import torch

        if key.endswith("attn_q_a.weight"):
            scale = values[0, 0].item() if values.dim() == 2 else 0.0  # of a rounded identity, which the norm undoes
            return scale > 0 and torch.equal(values, scale * torch.eye(self.width, dtype=values.dtype))
        return bool(((values - (1 + self.eps) ** 0.5).abs() <= _ROUNDING).all())

    def _require(self, holds: bool, key: str, path: str) -> None:
        if not holds:
            raise InputError(
                f"{path}: {key} makes a latent of the queries, which is missing here", expected="what an export writes"
            )

    def stored(self, tensors: Mapping[str, Tensor], eps: float) -> dict[str, Tensor]:
        """The tensors of a file from parameters by name, whose latents are normalized with ``eps`` there."""
        import torch

        keys = {name: key for key, name in _OUTSIDE.items()}
        found = {keys[name]: values for name, values in tensors.items() if name in keys}
        like = next(iter(found.values()))
        for block in range(self.layers):
            own = {
                name.removeprefix(f"blocks.{block}."): values
                for name, values in tensors.items()
                if name.startswith(f"blocks.{block}.")
            }
            own["attention.kv_down_proj"] = own["attention.kv_down_proj"] * (self.eps / eps) ** 0.5
            for key, names in _BLOCK.items():
                if key in ("attn_q_b.weight", "attn_q.weight") and (key == "attn_q.weight") is self.latent_queries:
                    continue
                if names:
                    found[f"blk.{block}.{key}"] = self._joined(key, {name: own[name] for name in names})
            if self.latent_queries:
                found[f"blk.{block}.attn_q_a.weight"] = torch.eye(self.width, dtype=like.dtype)
                found[f"blk.{block}.attn_q_a_norm.weight"] = torch.full((self.width,), (1 + self.eps) ** 0.5)
        return found

    def _joined(self, key: str, parts: Mapping[str, Tensor]) -> Tensor:
        if len(parts) > 1:
            return self.rows.joined({name.rpartition(".")[2]: values for name, values in parts.items()})
        values = next(iter(parts.values()))
        if key not in ("attn_k_b.weight", "attn_v_b.weight"):
            return values
        heads: Tensor = values.unflatten(0, (self.rows.heads, -1))
        return heads.transpose(1, 2).contiguous() if key == "attn_k_b.weight" else heads
