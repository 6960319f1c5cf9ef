"""Tokenizers of the library ``tokenizers``, with an identity that does not depend on where they were read from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from caramba_plugins_standard import libraries

from caramba_core.errors import InputError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["HuggingFaceTokenizer", "add_bos", "library", "read_tokenizer", "tokenizer_files"]

_WITHOUT_EFFECT: Final = frozenset({"trim_offsets"})
_DEFAULTS: Final[tuple[Any, ...]] = (None, False, "", [], 0.0)
_ROLES: Final = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Hugging Face's word for a special token to GGUF's."""

_SEPARATORS: Final = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""What pretraining put between documents; a chat model's end-of-sequence token is often the end of a turn instead."""


class HuggingFaceTokenizer:
    """A tokenizer; ``stops`` are the ids that end a generated text, the end of a sequence alone if none are given."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        end_of_sequence: int | None,
        stops: Sequence[int] = (),
        bos: int | None = None,
    ) -> None:
        self.backend = backend
        self.end_of_sequence = end_of_sequence
        self.stops = frozenset(stops or ([] if end_of_sequence is None else [end_of_sequence]))
        self.bos = added_bos(backend) if bos is None else bos

    @cached_property
    def identity(self) -> str:
        """SHA-256 of everything that decides how text becomes ids: vocabulary, merges, normalizer, pre-tokenizer.

        Offsets, decoders and what is added around a text are left out, so that the same tokenizer read from GGUF
        metadata and from a ``tokenizer.json`` has the same identity.
        """
        canonical = json.dumps(_canonical(json.loads(self.backend.to_str())), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def vocab_size(self) -> int:
        """Number of token ids, added ones and unused ones included."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @cached_property
    def end_of_text(self) -> int | None:
        """The id that separates documents.

        Of a special token: ``</s>`` may also be a tag of HTML, as in Gemma.  A plain one counts where no end is known.
        """
        special = {str(token): id_ for id_, token in self.backend.get_added_tokens_decoder().items() if token.special}
        ends = [*map(special.get, _SEPARATORS), self.end_of_sequence, *map(self.backend.token_to_id, _SEPARATORS)]
        return next((id_ for id_ in ends if id_ is not None), None)

    @cached_property
    def adds_bos(self) -> bool:
        """Whether its post-processor puts BOS before every text."""
        return self.bos is not None and added_bos(self.backend) == self.bos

    def encode(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Token ids of a text, nothing added; what spells a special token is one only with ``special_tokens``."""
        self._read_special_tokens(special_tokens)
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str], *, special_tokens: bool = False) -> list[list[int]]:
        """The same of each of several texts, on all cores; offsets, which take most of the memory, are left out."""
        self._read_special_tokens(special_tokens)
        return [each.ids for each in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _read_special_tokens(self, special_tokens: bool) -> None:
        if self.backend.encode_special_tokens == special_tokens:  # another thread may be encoding, as it is already
            self.backend.encode_special_tokens = not special_tokens

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids, special tokens spelled out."""
        return str(self.backend.decode(tokens, skip_special_tokens=False))


def library() -> Any:
    """The module ``tokenizers``; :class:`PluginError` where it is not installed."""
    return libraries.library("tokenizers", "text is tokenized", extra="caramba-plugins-llama[tokenizers]")


def read_tokenizer(
    path: Path,
    end_of_sequence: int | str | None,
    beside: Mapping[str, Mapping[str, Any]] | None = None,
    stops: Sequence[int] = (),
) -> HuggingFaceTokenizer:
    """A ``tokenizer.json``; ``end_of_sequence`` is an id or a token, ``stops`` are the ids that end a generated text.

    ``beside`` are the files that older versions of transformers kept added tokens in, by name; as in transformers, what
    is missing in ``tokenizer.json`` is added.  Its post-processor says whether a text begins with BOS; where it adds
    nothing, ``add_bos_token`` counts, which transformers 5 heeds for tokenizers without ``tokenizer.json`` alone.
    """
    tokenizers = library()
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise InputError(f"{path} is not a tokenizer: {error}", hint="fetch the file again") from error
    backend.no_truncation()
    backend.no_padding()
    try:
        backend.add_tokens([tokenizers.AddedToken(**token) for token in _added_tokens(beside or {})])
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: the added tokens beside it cannot be read: {error}") from error
    end = backend.token_to_id(end_of_sequence) if isinstance(end_of_sequence, str) else end_of_sequence
    settings = (beside or {}).get("tokenizer_config.json", {})
    bos = backend.token_to_id(str(_described(settings.get("bos_token")).get("content")))
    if settings.get("add_bos_token") is True and bos is not None and added_bos(backend) is None:
        add_bos(backend, bos)
    return HuggingFaceTokenizer(backend, end, stops, bos)


def added_bos(backend: tokenizers.Tokenizer) -> int | None:
    """What a tokenizer puts before every text."""
    alone, whole = backend.encode("a", add_special_tokens=False).ids, backend.encode("a").ids
    return whole[0] if len(whole) > len(alone) and whole[1 : 1 + len(alone)] == alone else None


def add_bos(backend: tokenizers.Tokenizer, bos: int) -> None:
    """Let a tokenizer put the token ``bos`` before every text."""
    token = backend.id_to_token(bos)
    backend.post_processor = library().processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, bos)]
    )


_FLAGS: Final = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")


def _added_tokens(beside: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The added tokens that stand beside ``tokenizer.json``, by id, and then the special ones that have a role."""
    settings = dict(beside.get("tokenizer_config.json", {}))
    listed = settings.get("added_tokens_decoder")
    if not isinstance(listed, Mapping):
        settings |= beside.get("special_tokens_map.json", {})
        listed = {id_: {"content": token} for token, id_ in beside.get("added_tokens.json", {}).items()}
    ordered = [*(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")), *settings]
    roles: list[Any] = [settings[key] for key in dict.fromkeys(ordered) if key in settings and key.endswith("_token")]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key) or ()
        roles += more.values() if isinstance(more, Mapping) else more
    named = [{**_described(token), "special": True} for token in roles]
    special = {token.get("content") for token in named}
    by_id = [_described(token) for _, token in sorted(listed.items(), key=lambda item: int(item[0]))]
    by_id = [{**token, "special": bool(token.get("special")) or token.get("content") in special} for token in by_id]
    tokens: list[dict[str, Any]] = [{key: token[key] for key in _FLAGS if key in token} for token in (*by_id, *named)]
    return [token for token in tokens if isinstance(token.get("content"), str)]


def _described(token: Any) -> dict[str, Any]:
    return dict(token) if isinstance(token, Mapping) else {"content": token}


def tokenizer_files(tokenizer: HuggingFaceTokenizer, metadata: Mapping[str, Any]) -> dict[str, str]:
    """The files by which a Hugging Face folder holds a tokenizer that came from GGUF ``metadata``."""
    ids = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in _ROLES.items()}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": tokenizer.backend.id_to_token(id_) for role, id_ in ids.items() if id_ is not None},
    }
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    del ids["unk"]
    special: dict[str, Any] = {f"{role}_token_id": id_ for role, id_ in ids.items() if id_ is not None}
    if len(tokenizer.stops) > 1:
        special["eos_token_id"] = sorted(tokenizer.stops, key=lambda id_: (id_ != tokenizer.end_of_sequence, id_))
    return {
        "tokenizer.json": tokenizer.backend.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "generation_config.json": json.dumps(special, indent=2) + "\n",
    }


def _canonical(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    model = dict(tokenizer["model"])
    vocabulary: Any = model.pop("vocab", {})
    byte_level = "ByteLevel" in json.dumps(tokenizer.get("pre_tokenizer"))
    if isinstance(vocabulary, dict):  # specials may stand in the vocabulary, beside it, or in both
        added = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}
        vocabulary = sorted({**vocabulary, **added}.items(), key=lambda item: (item[1], item[0]))
    merges = model.pop("merges", [])
    normalizer = tokenizer.get("normalizer")
    if normalizer == {"type": "Sequence", "normalizers": []}:
        normalizer = None
    flags = ["lstrip", "rstrip", "single_word", *(["normalized"] if normalizer else [])]
    if byte_level:
        model.pop("unk_token", None)  # every byte has a token: nothing is unknown
    return {
        "vocabulary": vocabulary,
        "merges": [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in merges],
        "model": _significant(model),
        "normalizer": _significant(normalizer),
        "pre_tokenizer": _significant(tokenizer.get("pre_tokenizer")),
        "added": sorted(
            [token["content"], *(flag for flag in flags if token.get(flag))]
            for token in tokenizer.get("added_tokens") or []
        ),
    }


def _significant(part: Any) -> Any:
    """A part of a tokenizer without what has no effect on ids: defaults spelled out, offsets."""
    if isinstance(part, Mapping):
        cleaned = {key: _significant(value) for key, value in part.items() if key not in _WITHOUT_EFFECT}
        return {key: value for key, value in cleaned.items() if not any(value is d or value == d for d in _DEFAULTS)}
    if isinstance(part, list):
        return [_significant(item) for item in part]
    return part
