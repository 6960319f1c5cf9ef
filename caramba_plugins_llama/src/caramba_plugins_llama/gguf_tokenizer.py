"""Tokenizers rebuilt from GGUF metadata: byte-level BPE (``gpt2``) and SentencePiece BPE (``llama``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from caramba_core.errors import InputError
from caramba_plugins_llama.known_keys import TOKENIZER
from caramba_plugins_llama.tokenizer import add_bos, library

__all__ = ["RULES", "bos_of", "rebuild", "stops_of"]

_UNKNOWN: Final = 2
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_UNUSED: Final = 5

_REST: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _by_case(ending: str, digits: str) -> str:
    """Words end where a lower-case letter is followed by an upper-case one."""
    start, rest = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return f"{start}{_UPPER}*{_LOWER}+{ending}|{start}{_UPPER}+{_LOWER}*{ending}|{digits}|{rest}"


@attrs.frozen(kw_only=True)
class Words:
    """How text is split into words: by each pattern in turn, or (without any) as GPT-2 does.

    ``digits``: each digit is a word.  ``whole``: words that are tokens are taken without merging.  ``composed``: text
    is normalized to NFC.  ``bos``: a text begins with BOS unless ``tokenizer.ggml.add_bos_token`` says otherwise.
    """

    patterns: tuple[str, ...] = ()
    digits: bool = False
    whole: bool = False
    composed: bool = False
    bos: bool = False


_LLAMA3: Final = Words(patterns=(rf"{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",), whole=True, bos=True)
_QWEN2: Final = Words(patterns=(rf"{_LETTERS}|\p{{N}}|{_REST}",), composed=True)
_GPT4O: Final = Words(patterns=(_by_case(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}"),))
_DEFAULT: Final = Words(
    patterns=(
        r"[\p{P}\$\+<=>\^~\|]+",
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    )
)

RULES: Final[dict[str, Words]] = {
    "default": _DEFAULT,
    "gpt-2": Words(),
    "smollm": Words(digits=True),
    "starcoder": Words(digits=True),
    "refact": Words(digits=True),
    "command-r": Words(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": Words(patterns=(_by_case("", r"\p{N}"),), whole=True, bos=True),
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "deepseek-v3": Words(
        patterns=(
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
            r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
        )
    ),
}
"""The names of ``tokenizer.ggml.pre`` that are known; a file without one means ``default``, as in llama.cpp."""

_ENDS: Final = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>"),
        *("<|eom_id|>", "<EOT>", "_<EOT>"),
    }
)
"""Tokens that llama.cpp knows as the end of a text or a turn, whatever the metadata says of them."""


def bos_of(metadata: Mapping[str, Any]) -> int | None:
    """The id that begins a text, where there is one."""
    return next(iter(_ids(metadata, "bos")), None)


def stops_of(metadata: Mapping[str, Any]) -> list[int]:
    """The ids that end a generated text, as in llama.cpp: of a sequence, a turn or a message."""
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    return [*_ids(metadata, "eos", "eot", "eom"), *(id_ for id_, token in enumerate(tokens) if token in _ENDS)]


def _ids(metadata: Mapping[str, Any], *roles: str) -> list[int]:
    """The ids of the tokens with these roles, as far as there are such tokens; SentencePiece has defaults."""
    usual = {"bos": 1, "eos": 2} if metadata.get("tokenizer.ggml.model") == "llama" else {}
    count = len(metadata.get("tokenizer.ggml.tokens", ()))
    named = (metadata.get(f"tokenizer.ggml.{role}_token_id", usual.get(role)) for role in roles)
    return [id_ for id_ in named if isinstance(id_, int) and 0 <= id_ < count]


def rebuild(metadata: Mapping[str, Any], path: Path) -> Any:
    """The ``tokenizers.Tokenizer`` of a file; raises :class:`InputError` for a kind that is not known."""
    kind = metadata["tokenizer.ggml.model"]
    unknown = TOKENIZER.problems({key: value for key, value in metadata.items() if key.startswith("tokenizer.")})
    if unknown:
        raise InputError(f"{path}: its tokenizer is not understood:\n    " + "\n    ".join(unknown))
    tokens, types = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise InputError(f"{path}: its tokenizer has no tokens")
    if len(set(tokens)) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if token in set(tokens[:i]))
        raise InputError(f"{path}: its tokenizer has the token {twice!r} twice")
    types = types if isinstance(types, list) and len(types) == len(tokens) else [1] * len(tokens)
    vocabulary = {
        token: id_
        for id_, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if not (type_ == _UNUSED and token == f"[PAD{id_}]")  # rows of the embeddings without a token
    }
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, vocabulary, path)
    elif kind == "llama":
        tokenizer = _sentence_piece(metadata, tokens, types, vocabulary, path)
    else:
        raise InputError(f"{path}: its tokenizer is of kind {kind!r}", expected="gpt2 or llama")
    added = library().AddedToken
    for types_, special in (((_UNKNOWN, _CONTROL), True), ((_USER_DEFINED,), False)):
        listed = [token for token, type_ in zip(tokens, types, strict=True) if type_ in types_]
        tokenizer.add_tokens([added(token, special=special, normalized=False) for token in listed])
    bos = bos_of(metadata)
    usual = kind == "llama" or (bos is not None and _words(metadata, path).bos)
    if metadata.get("tokenizer.ggml.add_bos_token", usual):
        if bos is None:
            raise InputError(f"{path}: its tokenizer puts BOS before every text, and does not say which token that is")
        add_bos(tokenizer, bos)
    return tokenizer


def _words(metadata: Mapping[str, Any], path: Path) -> Words:
    """How a byte-level tokenizer splits words."""
    pre = metadata.get("tokenizer.ggml.pre") or "default"
    if pre not in RULES:
        raise InputError(
            f"{path}: its tokenizer splits words by the rule {pre!r}, which is not known",
            expected=", ".join(RULES),
            hint="use the Hugging Face checkpoint, whose tokenizer.json holds the rule",
        )
    return RULES[pre]


def _byte_level(metadata: Mapping[str, Any], vocabulary: Mapping[str, int], path: Path) -> Any:
    lib, words = library(), _words(metadata, path)
    merges = _merges(metadata.get("tokenizer.ggml.merges"), vocabulary, path)
    whole = {"ignore_merges": True} if words.whole else {}
    tokenizer = lib.Tokenizer(lib.models.BPE(vocab=vocabulary, merges=merges, **whole))
    splits = lib.pre_tokenizers
    steps = [splits.Digits(individual_digits=True)] if words.digits else []
    steps += [splits.Split(lib.Regex(pattern), behavior="isolated") for pattern in words.patterns]
    steps.append(splits.ByteLevel(add_prefix_space=False, use_regex=not words.patterns))
    tokenizer.pre_tokenizer = splits.Sequence(steps) if len(steps) > 1 else steps[0]
    if words.composed:
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


def _sentence_piece(
    metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], vocabulary: Mapping[str, int], path: Path
) -> Any:
    """BPE with bytes for what has no token; the better a token's score, the earlier the merges that make it."""
    lib = library()
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise InputError(f"{path}: its tokenizer has no score for each token")
    ranked = []
    for token, score, type_ in zip(tokens, scores, types, strict=True):
        if token not in vocabulary or type_ in (_UNKNOWN, _CONTROL):  # no text becomes one by merging
            continue
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
