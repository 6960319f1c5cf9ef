"""The loader of Hugging Face checkpoints: ``config.json``, weights in one file or in shards, a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from caramba_plugins_standard.loading import Stored

from caramba_core.errors import InputError
from caramba_core.teachers import Tokenizer
from caramba_plugins_llama.configuration import attention_of, family_of, key_of, model_of
from caramba_plugins_llama.families import EMBEDDINGS, HEAD, Family, graph_names
from caramba_plugins_llama.head_rows import IN_HEADS, head_order, rows_in_order
from caramba_plugins_llama.inside import inside
from caramba_plugins_llama.json_file import read_object
from caramba_plugins_llama.known_keys import GENERATION
from caramba_plugins_llama.latent_rows import LatentRows
from caramba_plugins_llama.safetensors_file import (
    SafetensorsEntry,
    looks_like_safetensors,
    read_header,
    same_bytes,
    values_of,
)

if TYPE_CHECKING:
    import torch

__all__ = ["COMPANIONS", "HuggingFaceFolder"]

_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
_PICKLED: Final = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_GENERATION: Final = "generation_config.json"
_BESIDE_TOKENIZER: Final = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
COMPANIONS: Final = ("config.json", _GENERATION, "tokenizer.json", *_BESIDE_TOKENIZER, "chat_template.jinja")
"""What goes with the weights, and what the hub's source fetches with them, where it exists."""
_PICKLE_SUFFIXES: Final = (".bin", ".pth", ".pt")


@attrs.frozen(kw_only=True)
class _Part:
    """What fills one parameter: a tensor, or rows ``first`` to ``last`` of one that fills several.

    ``latent`` is the parameter of a latent attention, whose rows :class:`LatentRows` knows.
    """

    key: str
    name: str | None
    first: int = 0
    last: int = 0
    rows: bool = False
    latent: str | None = None


class HuggingFaceFolder:
    """A checkpoint folder, or one file of weights beside its ``config.json``; opening it reads headers.

    Pickled weights are read only where the file (or its index) is named; a folder means its safetensors.
    """

    def __init__(
        self, path: Path, folder: Path, config: Mapping[str, Any], shards: Mapping[Path, frozenset[str] | None]
    ) -> None:
        self.path = path
        self.folder = folder
        self.config = config
        self._shards = shards
        self._pickled = any(shard.suffix in _PICKLE_SUFFIXES for shard in shards)
        self._entries: tuple[SafetensorsEntry, ...] = ()
        if not self._pickled:
            headers = {shard: read_header(shard) for shard in shards}
            self._entries = tuple(entry for header in headers.values() for entry in header)
            for shard, header in headers.items():
                self._compare(shard, {entry.key for entry in header})

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether this is a folder with a configuration or weights, an index of shards, or a file of weights."""
        if path.is_dir():
            weights = any((path / name).is_file() for name in (*_WEIGHTS, *_PICKLED))
            return weights or (path / "config.json").exists()
        if path.name.endswith(".index.json"):
            return True
        if path.suffix in _PICKLE_SUFFIXES:
            with path.open("rb") as file:
                start = file.read(4)
            return start == b"PK\x03\x04" or start[:1] == b"\x80"
        return looks_like_safetensors(path)

    @classmethod
    def open(cls, path: Path) -> HuggingFaceFolder:
        """Read configuration, index and headers; raises :class:`InputError` naming what is missing or damaged."""
        folder = path if path.is_dir() else path.parent
        if not (folder / "config.json").exists():
            raise InputError(
                f"{folder} has no config.json", expected="a Hugging Face checkpoint: config.json beside its weights"
            )
        config = read_object(inside(folder, "config.json"))
        weights = _weights(folder) if path.is_dir() else path
        shards: dict[Path, frozenset[str] | None]
        shards = (
            _indexed(folder, weights) if weights.name.endswith(".index.json") else {inside(folder, weights.name): None}
        )
        return cls(path, folder, config, shards)

    def model(self) -> Mapping[str, Any]:
        """The model inside, in the words of a manifest; a folder that caramba exported may hold them itself."""
        if self._described is not None:
            model = self._described.get("model")
            if not isinstance(model, Mapping):
                raise InputError(f"{self.folder / 'config.json'}: caramba.model is no mapping")
            return model
        origin = self.folder / "config.json"
        if (self.folder / _GENERATION).exists():
            unknown = GENERATION.problems(read_object(inside(self.folder, _GENERATION)))
            if unknown:
                raise InputError(f"{self.folder / _GENERATION} is not understood:\n    " + "\n    ".join(unknown))
        config = dict(self.config)
        if config.get("tie_word_embeddings") is True:
            config["tie_word_embeddings"] = self._head != "its own"
        return model_of(config, str(origin))

    def key_of(self, path: tuple[str | int, ...]) -> str | None:
        """The key of ``config.json`` behind a value of :meth:`model`."""
        return key_of(path) if self._described is None else f"caramba.model.{'.'.join(map(str, path))}"

    def layout(self) -> tuple[Stored, ...]:
        """Every tensor, from the headers (a pickle has none: it is opened with torch).

        One that fills several parameters counts once for each, with its rows in brackets.
        """
        if self._pickled:
            for path, tensors in self._pickles():
                self._compare(path, set(tensors))
            return tuple(
                Stored(
                    key=part.key,
                    name=part.name,
                    shape=(part.last - part.first, *values.shape[1:])
                    if part.rows
                    else self._shape(part, tuple(values.shape)),
                    dtype=str(values.dtype).removeprefix("torch."),
                )
                for _, tensors in self._pickles()
                for key, values in tensors.items()
                for part in self._parts(key, tuple(values.shape))
            ) + tuple(self._pairs())
        return tuple(
            Stored(
                key=part.key,
                name=part.name,
                shape=self._shape(part, entry.shape),
                dtype=entry.dtype,
                span=None if part.latent or (part.name is not None and self._order(part.name)) else entry.span,
            )
            for part, entry in self._pieces()
        ) + tuple(self._pairs())

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that the graph needs once, in the stored type."""
        if self._pickled:
            for _, tensors in self._pickles():
                shared: set[int] = set()
                for key, stored in tensors.items():
                    for part in self._parts(key, tuple(stored.shape)):
                        if part.name is None:
                            continue
                        values = stored[part.first : part.last] if part.rows else self._taken(part, stored)
                        storage = values.untyped_storage().data_ptr()
                        if values.is_floating_point() and values.dtype.itemsize == 1:
                            values = values.float()
                        yield part.name, self._in_order(part.name, values.clone() if storage in shared else values)
                        shared.add(storage)
            yield from self._pair_values()
            return
        wanted = [(part, entry) for part, entry in self._pieces() if part.name is not None]
        for (part, _), (_, values) in zip(wanted, values_of(entry for _, entry in wanted), strict=True):
            yield str(part.name), self._in_order(str(part.name), self._taken(part, values))
        yield from self._pair_values()

    def _shape(self, part: _Part, stored: tuple[int, ...]) -> tuple[int, ...]:
        return stored if part.latent is None else self._latent.shape(part.latent, stored)

    def _taken(self, part: _Part, values: torch.Tensor) -> torch.Tensor:
        return values if part.latent is None else self._latent.taken(part.latent, values)

    @cached_property
    def _latent(self) -> LatentRows:
        return LatentRows.of(self._attention)

    def _pairs(self) -> Iterator[Stored]:
        """The rotary pairs of latent attentions, which no file holds: all that the configuration tells of."""
        if self._described is not None or self._family.latent_norm_eps is None:
            return
        for block in range(int(self.config["num_hidden_layers"])):
            name, shape = f"blocks.{block}.attention.pairs", (self._latent.rotary // 2,)
            yield Stored(key=f"qk_rope_head_dim, layer {block}", name=name, shape=shape, dtype="int64")

    def _pair_values(self) -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        for stored in self._pairs():
            yield str(stored.name), torch.arange(stored.shape[0])

    def tokenizer(self) -> Tokenizer | None:
        """``tokenizer.json``, where there is one."""
        if not inside(self.folder, "tokenizer.json").exists():
            return None
        from caramba_plugins_llama.tokenizer import read_tokenizer

        beside = {
            name: read_object(inside(self.folder, name)) for name in _BESIDE_TOKENIZER if (self.folder / name).exists()
        }
        generation = inside(self.folder, _GENERATION)
        stops = _ids((read_object(generation) if generation.exists() else {}).get("eos_token_id"))
        stops = stops or _ids(self.config.get("eos_token_id"))
        token = beside.get("tokenizer_config.json", {}).get("eos_token")
        token = token.get("content") if isinstance(token, Mapping) else token
        ends = [token] if isinstance(token, str) else [*_ids(self.config.get("eos_token_id")), *stops, None]
        return read_tokenizer(inside(self.folder, "tokenizer.json"), ends[0], beside, stops)

    def companions(self) -> Mapping[str, str]:
        """The configuration, tokenizer and settings of generation, as they are."""
        there = [name for name in COMPANIONS if (self.folder / name).exists()]
        return {name: inside(self.folder, name).read_text(encoding="utf-8") for name in there}

    @property
    def _described(self) -> Mapping[str, Any] | None:
        """What caramba wrote into the configuration of a model that no family of Hugging Face expresses."""
        described = self.config.get("caramba")
        return described if isinstance(described, Mapping) else None

    def _name(self, key: str) -> str | None:
        if self._described is not None:
            return self._names.get(key, self._names.get(_numbered(key), key)).replace("{}", _number(key))
        name = next(iter(graph_names(key, self._family)), None)
        if name == HEAD and self._head != "its own":
            return EMBEDDINGS if self._head == "for both" else None
        return name

    def _parts(self, key: str, shape: tuple[int, ...]) -> list[_Part]:
        """The parameters that a tensor fills, with the rows of each where there are several."""
        names = () if self._described is not None else graph_names(key, self._family)
        if len(names) < 2:
            return [_Part(key=key, name=self._name(key))]
        if self._family.latent_norm_eps is not None:
            own = [name.rpartition(".")[2] for name in names]
            return [
                _Part(key=f"{key} ({short})", name=name, latent=short) for name, short in zip(names, own, strict=True)
            ]
        parts, first = [], 0
        for name in names:
            last = min(first + self._rows[name.rpartition(".")[2]], shape[0]) if name != names[-1] else shape[0]
            parts.append(_Part(key=f"{key}[{first}:{last}]", name=name, first=first, last=last, rows=True))
            first = last
        return parts

    def _pieces(self) -> Iterator[tuple[_Part, SafetensorsEntry]]:
        """Every tensor, or its rows: they lie one behind the other."""
        for entry in self._entries:
            for part in self._parts(entry.key, entry.shape):
                if part.rows:
                    row = (entry.last - entry.first) // (entry.shape[0] or 1)
                    yield (
                        part,
                        attrs.evolve(
                            entry,
                            key=part.key,
                            shape=(part.last - part.first, *entry.shape[1:]),
                            first=entry.first + part.first * row,
                            last=entry.first + part.last * row,
                        ),
                    )
                else:
                    yield part, entry

    def _order(self, name: str) -> tuple[int, ...] | None:
        """Where the file has each row of a head of this parameter, if its rows stand in another order."""
        return self._head_order if name.endswith(IN_HEADS) and self._described is None else None

    def _in_order(self, name: str, values: torch.Tensor) -> torch.Tensor:
        order = self._order(name)
        return values if order is None else rows_in_order(values, order)

    @cached_property
    def _family(self) -> Family:
        return family_of(self.config, str(self.folder / "config.json"))

    @cached_property
    def _attention(self) -> Mapping[str, Any]:
        """The first attention of the model inside."""
        return attention_of(self.model())

    @cached_property
    def _rows(self) -> Mapping[str, int]:
        """How many rows projections have that may be stored with others."""
        sizes = self._attention
        queries, keys = (sizes[heads] * sizes["head_dim"] for heads in ("n_heads", "n_kv_heads"))
        hidden = self.config.get("intermediate_size", 0)
        return {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": hidden, "up_proj": hidden}

    @cached_property
    def _head_order(self) -> tuple[int, ...] | None:
        if self._family.latent_norm_eps is not None:
            return None  # rows of latent attentions are put in order where they are taken apart
        width = self._attention["head_dim"]
        rotated = self._attention.get("rope", {}).get("rotated", width)
        return head_order(width, rotated, adjacent=self._family.adjacent_pairs)

    @cached_property
    def _head(self) -> str:
        """Where embeddings are to be tied to the head, what the checkpoint holds decides, as in transformers.

        A head with values of its own is used; one without embeddings stands ``for both``; any other is ``not needed``.
        """
        if self.config.get("tie_word_embeddings") is not True:
            return "its own"
        if self._pickled:
            stored: dict[str, Any] = {}
            for _, tensors in self._pickles():
                stored |= {"".join(graph_names(key, self._family)): values for key, values in tensors.items()}
        else:
            stored = {"".join(graph_names(entry.key, self._family)): entry for entry in self._entries}
        head, embeddings = stored.get(HEAD), stored.get(EMBEDDINGS)
        if head is None or embeddings is None:
            return "not needed" if head is None else "for both"
        if head.shape != embeddings.shape or head.dtype != embeddings.dtype:
            return "its own"
        same = head.equal(embeddings) if self._pickled else same_bytes(head, embeddings)
        return "not needed" if same else "its own"

    @cached_property
    def _names(self) -> Mapping[str, str]:
        """Keys of an exported folder to names in the graph, ``{}`` for the number of a block."""
        keys = self._described.get("keys") if self._described is not None else None
        if not isinstance(keys, Mapping) or not all(isinstance(key, str) for key in keys.values()):
            raise InputError(f"{self.folder / 'config.json'}: caramba.keys is no mapping of names to keys")
        return {key: name for name, key in keys.items()}

    def _pickles(self) -> Iterator[tuple[Path, Mapping[str, torch.Tensor]]]:
        from caramba_plugins_llama.torch_file import load_pickled

        for path in self._shards:
            yield path, load_pickled(path)

    def _compare(self, path: Path, found: set[str]) -> None:
        """Refuse a shard without a tensor that the index says it has, and that the model needs."""
        expected = self._shards[path] or frozenset()
        missing = sorted(key for key in expected - found if self._name(key) not in (None, key))
        if missing:
            raise InputError(f"{path} is not the shard that the index describes: it lacks {', '.join(missing[:8])}")


def _ids(value: Any) -> list[int]:
    """A setting that is one token id or several."""
    return [id_ for id_ in (value if isinstance(value, list) else [value]) if isinstance(id_, int)]


def _number(key: str) -> str:
    """The first number in a dotted key."""
    return next((part for part in key.split(".") if part.isdecimal()), "")


def _numbered(key: str) -> str:
    """A dotted key with ``{}`` for its first number."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "{}", key, count=1)


def _weights(folder: Path) -> Path:
    for name in _WEIGHTS:
        if inside(folder, name).exists():
            return folder / name
    pickled = next((name for name in _PICKLED if (folder / name).is_file()), None)
    if pickled is not None:
        raise InputError(
            f"{folder} holds pickled weights alone, which are read only where they are named",
            hint=f"write the file itself as source: {folder / pickled}",
        )
    raise InputError(f"{folder} holds no weights", expected=" or ".join(_WEIGHTS))


def _indexed(folder: Path, index: Path) -> dict[Path, frozenset[str] | None]:
    """The shards that an index names, each with the keys that it must hold."""
    listed = read_object(inside(folder, index.name)).get("weight_map")
    if not isinstance(listed, Mapping) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise InputError(f"{index} has no weight_map from tensors to files")
    keys: dict[str, set[str]] = {}
    for key, name in listed.items():
        keys.setdefault(name, set()).add(key)
    shards: dict[Path, frozenset[str] | None] = {
        inside(folder, name, str(index)): frozenset(held) for name, held in keys.items()
    }
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise InputError(
            f"{index} names files that are not there: {', '.join(missing)}", hint="fetch the whole checkpoint"
        )
    suffixes = {path.suffix for path in shards}
    if suffixes != {".safetensors"} and not suffixes <= set(_PICKLE_SUFFIXES):
        raise InputError(f"{index} names files of several kinds: {', '.join(sorted(suffixes))}")
    return dict(sorted(shards.items()))
