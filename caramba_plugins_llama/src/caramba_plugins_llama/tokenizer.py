"""Tokenizers of the library ``tokenizers``, with an identity that does not depend on where they were read from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from caramba_core.errors import InputError, PluginError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["HuggingFaceTokenizer", "library", "read_tokenizer", "tokenizer_files"]

_WITHOUT_EFFECT: Final = frozenset({"trim_offsets"})
_DEFAULTS: Final[tuple[Any, ...]] = (None, False, "", [], 0.0)
_ROLES: Final = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""Hugging Face's word for a special token to GGUF's."""

_SEPARATORS: Final = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""What pretraining put between documents; a chat model's end-of-sequence token is often the end of a turn instead."""


class HuggingFaceTokenizer:
    """A tokenizer; special tokens in a text are recognized, none are added."""

    def __init__(self, backend: tokenizers.Tokenizer, end_of_sequence: int | None) -> None:
        self.backend = backend
        self.end_of_sequence = end_of_sequence

    @cached_property
    def identity(self) -> str:
        """SHA-256 of everything that decides how text becomes ids: vocabulary, merges, normalizer, pre-tokenizer.

        Offsets, decoders and what is added around a text are left out, so that the same tokenizer read from GGUF
        metadata and from a ``tokenizer.json`` has the same identity.
        """
        canonical = json.dumps(_canonical(json.loads(self.backend.to_str())), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def end_of_text(self) -> int | None:
        """The id that separates documents."""
        ids = (self.backend.token_to_id(token) for token in _SEPARATORS)
        return next((id_ for id_ in ids if id_ is not None), self.end_of_sequence)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        """The text of token ids, special tokens spelled out."""
        return str(self.backend.decode(tokens, skip_special_tokens=False))


def library() -> Any:
    """The module ``tokenizers``; :class:`PluginError` where it is not installed."""
    try:
        import tokenizers
    except ImportError as error:
        raise PluginError(
            "text is tokenized with the library tokenizers, which is not installed",
            hint="pip install 'caramba-plugins-llama[tokenizers]'",
        ) from error
    return tokenizers


def read_tokenizer(path: Path, end_of_sequence: int | str | None) -> HuggingFaceTokenizer:
    """A ``tokenizer.json``; ``end_of_sequence`` is an id or a token."""
    tokenizers = library()
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise InputError(f"{path} is not a tokenizer: {error}", hint="fetch the file again") from error
    backend.no_truncation()
    backend.no_padding()
    end = backend.token_to_id(end_of_sequence) if isinstance(end_of_sequence, str) else end_of_sequence
    return HuggingFaceTokenizer(backend, end)


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
    special = {f"{role}_token_id": id_ for role, id_ in ids.items() if id_ is not None and role != "unk"}
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
    flags = ["lstrip", "rstrip", "single_word", *(["normalized"] if tokenizer.get("normalizer") else [])]
    if byte_level:
        model.pop("unk_token", None)  # every byte has a token: nothing is unknown
    return {
        "vocabulary": vocabulary,
        "merges": [pair.split(" ") if isinstance(pair, str) else list(pair) for pair in merges],
        "model": _significant(model),
        "normalizer": _significant(tokenizer.get("normalizer")),
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
