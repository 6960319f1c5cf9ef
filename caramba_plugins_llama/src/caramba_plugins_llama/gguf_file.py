"""The loader of GGUF files: one file with configuration, weights and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from caramba_plugins_standard.loading import FileSpan, Stored

from caramba_core.errors import InputError
from caramba_core.teachers import Tokenizer
from caramba_plugins_llama.configuration import key_of, model_of
from caramba_plugins_llama.families import ARCHITECTURES, FAMILIES, NORMS, Architecture, Family
from caramba_plugins_llama.gguf_header import MAGIC, PLAIN, GgufHeader, GgufTensor, read_file
from caramba_plugins_llama.gguf_latent import LatentFile
from caramba_plugins_llama.gguf_metadata import configuration, metadata_key
from caramba_plugins_llama.head_rows import IN_HEADS, head_order, rows_in_order
from caramba_plugins_llama.tokenizer import HuggingFaceTokenizer, tokenizer_files

if TYPE_CHECKING:
    import torch

__all__ = ["GgufFile", "gguf_keys"]

_OUTSIDE: Final = {
    "token_embd.weight": "embedder.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
}
_PROJECTIONS: Final = {
    "attn_q": "attention.q",
    "attn_k": "attention.k",
    "attn_v": "attention.v",
    "attn_output": "attention.o",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
_BLOCK: Final = {
    "attn_q_norm.weight": "attention.q_norm",
    "attn_k_norm.weight": "attention.k_norm",
    **{f"{key}.weight": f"{name}_proj" for key, name in _PROJECTIONS.items()},
    **{f"{key}.bias": f"{name}_bias" for key, name in _PROJECTIONS.items()},
}
_BIASED: Final = {
    "qkv_bias": ("attn_q", "attn_k", "attn_v"),
    "o_bias": ("attn_output",),
    "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
}
"""Which projections a rule of :class:`Family` gives offsets to."""

_FREQUENCIES: Final = "rope_freqs.weight"


class GgufFile:
    """A GGUF checkpoint; opening it reads the header."""

    def __init__(self, path: Path, header: GgufHeader, architecture: Architecture) -> None:
        self.path = path
        self.header = header
        self.architecture = architecture

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether the file starts as GGUF does."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read the header; raises :class:`InputError` where it is damaged or of another architecture."""
        header = read_file(path)
        name = header.metadata.get("general.architecture")
        if name not in ARCHITECTURES:
            raise InputError(
                f"{path} holds a model of architecture {name!r}, which is not of the Llama family",
                expected=", ".join(ARCHITECTURES),
            )
        return cls(path, header, ARCHITECTURES[name])

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The configuration in Hugging Face's words."""
        biases: dict[str, bool] = {}
        for rule in _BIASED:
            key = getattr(FAMILIES[self.architecture.model_type], rule)
            if isinstance(key, str):
                biases[key] = biases.get(key, False) or getattr(self._family, rule)
        return {**self._stated, **biases}

    @cached_property
    def _stated(self) -> Mapping[str, Any]:
        return configuration(self.path, self.header, self.architecture)

    def model(self) -> Mapping[str, Any]:
        """The model inside, in the words of a manifest."""
        return model_of(self._stated, str(self.path), self._family)

    def key_of(self, path: tuple[str | int, ...]) -> str | None:
        """The metadata entry behind a value of :meth:`model`."""
        key = key_of(path)
        return None if key is None else metadata_key(key, self.header.metadata["general.architecture"])

    def layout(self) -> tuple[Stored, ...]:
        """Every tensor, from the header."""
        stored = tuple(
            Stored(
                key=tensor.name,
                name=self._name(tensor.name),
                shape=tensor.shape,
                dtype=tensor.dtype,
                span=self._span(tensor),
            )
            for tensor in (*self.header.tensors.values(), *self._zeros())
        )
        return stored if self._latent is None else self._latent.layout(stored)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor once, dequantized to float32 (F16 and BF16 stay), in the row order of Hugging Face."""
        from caramba_plugins_llama.gguf_values import values_of

        held = self.header.tensors.values()
        wanted = [one for one in held if self._name(one.name) is not None or self._latent is not None]
        yield from self.filled(values_of(wanted))

    def filled(self, stored: Iterable[tuple[GgufTensor, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters that tensors of the file fill."""
        import torch

        if self._latent is not None:
            yield from self._latent.filled(stored, str(self.path))
            return
        for tensor, values in stored:
            name = str(self._name(tensor.name))
            if self._turns(tensor):
                self._require_heads(name, tensor)
                values = rows_in_order(values, self._order or ())
            yield name, values
        for tensor in self._zeros():
            yield str(self._name(tensor.name)), torch.zeros(tensor.shape)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the metadata, where there is one."""
        if self.header.metadata.get("tokenizer.ggml.model", "no_vocab") == "no_vocab":
            return None
        from caramba_plugins_llama.gguf_tokenizer import bos_of, rebuild, stops_of

        metadata = self.header.metadata
        backend = rebuild(metadata, self.path)
        end = metadata.get("tokenizer.ggml.eos_token_id")
        return HuggingFaceTokenizer(backend, end, stops_of(metadata), bos_of(metadata))

    def companions(self) -> Mapping[str, str]:
        """The configuration and, from the metadata, the tokenizer and settings of generation."""
        files = {"config.json": json.dumps(dict(self.config), indent=2) + "\n"}
        tokenizer = self.tokenizer()
        if isinstance(tokenizer, HuggingFaceTokenizer):
            files |= tokenizer_files(tokenizer, self.header.metadata)
        return files

    @cached_property
    def _family(self) -> Family:
        """The family, with the offsets that the file holds and without the defaults of another format."""
        held = {name.rpartition(".")[0].rpartition(".")[2] for name in self.header.tensors if name.endswith(".bias")}
        biased: dict[str, Any] = {rule: not held.isdisjoint(parts) for rule, parts in _BIASED.items()}
        if self.architecture.latent:  # llama.cpp adds one number to all mean squares
            biased["latent_norm_eps"] = self._stated["rms_norm_eps"]
        return attrs.evolve(FAMILIES[self.architecture.model_type], defaults={}, window="never", **biased)

    @cached_property
    def _latent(self) -> LatentFile | None:
        """What knows the tensors of latent attentions, where the file has them."""
        return LatentFile.of(self._stated) if self.architecture.latent else None

    def _zeros(self) -> Iterator[GgufTensor]:
        """The offsets that this file leaves out, and others of their kind do not: llama.cpp adds none."""
        has = self.header.tensors
        biased = [part for rule, parts in _BIASED.items() if getattr(self._family, rule) for part in parts]
        for tensor in has.values():
            stem, _, ending = tensor.name.rpartition(".")
            if ending == "weight" and stem.rpartition(".")[2] in biased and f"{stem}.bias" not in has:
                yield attrs.evolve(tensor, name=f"{stem}.bias", shape=tensor.shape[:1], dtype="F32", bytes=0)

    def _span(self, tensor: GgufTensor) -> FileSpan | None:
        if tensor.dtype not in PLAIN or self._turns(tensor) or not tensor.bytes:
            return None
        return FileSpan(path=tensor.path, offset=tensor.offset, dtype=PLAIN[tensor.dtype])

    def _turns(self, tensor: GgufTensor) -> bool:
        """Whether rows of the file stand in another order than the graph's."""
        return self._order is not None and str(self._name(tensor.name)).endswith(IN_HEADS)

    @cached_property
    def _order(self) -> tuple[int, ...] | None:
        width = self.config["head_dim"]
        return head_order(width, width, adjacent=self.architecture.adjacent_pairs)

    def _require_heads(self, name: str, tensor: GgufTensor) -> None:
        heads = int(self.config["num_attention_heads" if ".q_" in name else "num_key_value_heads"])
        if tensor.shape[0] % (2 * heads):
            raise InputError(f"{self.path}: {tensor.name} has {tensor.shape[0]} rows, which {heads} heads cannot share")

    def _name(self, key: str) -> str | None:
        """The parameter that a tensor fills; ``None`` where none needs it, the key where none is known."""
        if key == _FREQUENCIES:
            return None  # the configuration tells the scaling that it holds
        if key in _OUTSIDE:
            return _OUTSIDE[key]
        if self._latent is not None:
            return self._latent.name(key)
        index, _, rest = key.removeprefix("blk.").partition(".")
        block = _block(self.architecture)
        if key.startswith("blk.") and index.isdecimal() and rest in block:
            return f"blocks.{int(index)}.{block[rest]}"
        return key


def gguf_keys(architecture: Architecture = ARCHITECTURES["llama"]) -> dict[str, str]:
    """The GGUF tensor that each parameter of the graph is written as; ``{}`` stands for a block's number."""
    blocks = {f"blocks.{{}}.{name}": f"blk.{{}}.{key}" for key, name in _block(architecture).items()}
    return {**{name: key for key, name in _OUTSIDE.items()}, **blocks}


def _block(architecture: Architecture) -> dict[str, str]:
    return {**_BLOCK, **dict(zip((f"{name}.weight" for name in architecture.norms), NORMS, strict=False))}
