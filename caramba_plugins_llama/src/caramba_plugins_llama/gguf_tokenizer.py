"""Tokenizers rebuilt from GGUF metadata: byte-level BPE (``gpt2``) and SentencePiece BPE (``llama``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from caramba_core.errors import InputError
from caramba_plugins_llama.tokenizer import library

__all__ = ["rebuild"]

_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_UNKNOWN: Final = 2

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2: Final = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

_WORDS: Final[dict[str, str | None]] = {
    "default": None,
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
"""How ``tokenizer.ggml.pre`` splits text into words; ``None``: as GPT-2 does, which the library has built in."""

_DIGITS_APART: Final = ("smollm",)
_WHOLE_WORDS_FIRST: Final = ("llama-bpe", "llama3", "llama-v3")
"""Words that are tokens are taken whole, without merging."""
_COMPOSED: Final = ("qwen2", "deepseek-r1-qwen")
"""Text is normalized to NFC."""


def rebuild(metadata: Mapping[str, Any], path: Path) -> Any:
    """The ``tokenizers.Tokenizer`` of a file; raises :class:`InputError` for a kind that is not known."""
    kind = metadata["tokenizer.ggml.model"]
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{path}: its tokenizer has no tokens")
    if len(set(tokens)) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if token in set(tokens[:i]))
        raise InputError(f"{path}: its tokenizer has the token {twice!r} twice")
    types = types if isinstance(types, list) and len(types) == len(tokens) else [1] * len(tokens)
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens, path)
    elif kind == "llama":
        tokenizer = _sentence_piece(metadata, tokens, types, path)
    else:
        raise InputError(f"{path}: its tokenizer is of kind {kind!r}", expected="gpt2 or llama")
    special = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (_CONTROL, _USER_DEFINED)]
    added = library().AddedToken
    tokenizer.add_special_tokens(
        [added(token, special=True, normalized=False) for token, kind in special if kind == _CONTROL]
    )
    tokenizer.add_tokens(
        [added(token, special=False, normalized=False) for token, kind in special if kind == _USER_DEFINED]
    )
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], path: Path) -> Any:
    lib = library()
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _WORDS:
        raise InputError(
            f"{path}: its tokenizer splits words by the rule {pre!r}, which is not known",
            expected=", ".join(_WORDS),
            hint="use the Hugging Face checkpoint, whose tokenizer.json holds the rule",
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _merges(metadata.get("tokenizer.ggml.merges"), vocabulary, path)
    whole = {"ignore_merges": True} if pre in _WHOLE_WORDS_FIRST else {}
    tokenizer = lib.Tokenizer(lib.models.BPE(vocab=vocabulary, merges=merges, **whole))
    words, splits = _WORDS[pre], lib.pre_tokenizers
    steps = [splits.Digits(individual_digits=True)] if pre in _DIGITS_APART else []
    if words is not None:
        steps.append(splits.Split(lib.Regex(words), behavior="isolated"))
    steps.append(splits.ByteLevel(add_prefix_space=False, use_regex=words is None))
    tokenizer.pre_tokenizer = splits.Sequence(steps) if len(steps) > 1 else steps[0]
    if pre in _COMPOSED:
        tokenizer.normalizer = lib.normalizers.NFC()
    tokenizer.decoder = lib.decoders.ByteLevel()
    return tokenizer


def _merges(listed: Any, vocabulary: Mapping[str, int], path: Path) -> list[tuple[str, str]]:
    if not isinstance(listed, list):
        raise InputError(f"{path}: its tokenizer has no merges")
    merges = []
    for rank, merge in enumerate(listed):
        left, space, right = str(merge).partition(" ")
        if (
            not space
            or " " in right
            or left + right not in vocabulary
            or left not in vocabulary
            or right not in vocabulary
        ):
            raise InputError(f"{path}: merge {rank} of its tokenizer, {merge!r}, does not join two tokens into a third")
        merges.append((left, right))
    return merges


def _sentence_piece(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], path: Path) -> Any:
    """BPE with bytes for what has no token; the better a token's score, the earlier the merges that make it."""
    lib = library()
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise InputError(f"{path}: its tokenizer has no score for each token")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    ranked = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-score, vocabulary[left], vocabulary[right], left, right))
    ranked.sort()
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), None)
    model = lib.models.BPE(
        vocab=vocabulary,
        merges=[(left, right) for *_, left, right in ranked],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = lib.Tokenizer(model)
    prefix = [lib.normalizers.Prepend("▁")] if metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    tokenizer.normalizer = lib.normalizers.Sequence([*prefix, lib.normalizers.Replace(" ", "▁")])
    steps = [lib.decoders.Replace("▁", " "), lib.decoders.ByteFallback(), lib.decoders.Fuse()]
    if prefix:
        steps.append(lib.decoders.Strip(content=" ", left=1))
    tokenizer.decoder = lib.decoders.Sequence(steps)
    return tokenizer
