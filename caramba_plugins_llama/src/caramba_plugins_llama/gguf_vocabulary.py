"""The tokenizer of an exported model in the metadata of GGUF."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from caramba_plugins_standard.loading import Checkpoint

from caramba_core.errors import CarambaError
from caramba_plugins_llama.exporting import ExportError
from caramba_plugins_llama.gguf_file import GgufFile
from caramba_plugins_llama.gguf_tokenizer import RULES, rebuild
from caramba_plugins_llama.tokenizer import HuggingFaceTokenizer

__all__ = ["vocabulary_of"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_KNOWN_BY_NAME: Final = ("bos", "eos", "unk", "pad")
_GGUF: Final = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_TEMPLATE: Final = "tokenizer.chat_template"


def vocabulary_of(origin: Checkpoint | None, companions: Mapping[str, str], rows: int) -> dict[str, Any]:
    """The entries ``tokenizer.*``: those of a GGUF file as they are, or those that say what a ``tokenizer.json`` says.

    ``rows`` are the model's embeddings: ids without a token are named as unused.  Raises :class:`ExportError` for a
    tokenizer that llama.cpp would not cut texts like.
    """
    if isinstance(origin, GgufFile):
        found = {key: value for key, value in origin.header.metadata.items() if key.startswith("tokenizer.")}
    elif origin is None or not isinstance(tokenizer := origin.tokenizer(), HuggingFaceTokenizer):
        found = {}
    else:
        found = _said(tokenizer, companions)
    if "tokenizer.ggml.tokens" not in found:
        return {"tokenizer.ggml.model": "no_vocab"}
    return _filled(found, rows)


def _filled(found: dict[str, Any], rows: int) -> dict[str, Any]:
    """With a token for every row of the embeddings, which llama.cpp counts by its tokens."""
    spare = range(len(found["tokenizer.ggml.tokens"]), rows)
    more: dict[str, list[Any]] = {
        "tokenizer.ggml.tokens": [f"[PAD{id_}]" for id_ in spare],
        "tokenizer.ggml.token_type": [_UNUSED] * len(spare),
        "tokenizer.ggml.scores": [0.0] * len(spare),
    }
    return {**found, **{key: [*found[key], *values] for key, values in more.items() if key in found}}


def _said(tokenizer: HuggingFaceTokenizer, companions: Mapping[str, str]) -> dict[str, Any]:
    """What a ``tokenizer.json`` says, in the first way that is read back as the same tokenizer."""
    described = json.loads(tokenizer.backend.to_str())
    if described["model"].get("type") != "BPE":
        raise ExportError(f"its tokenizer is {described['model'].get('type')}, and BPE alone is written to GGUF")
    roles = _roles(tokenizer, companions)
    for entries in _ways(described, tokenizer.vocab_size):
        entries |= {f"tokenizer.ggml.{_GGUF[role]}_token_id": id_ for role, id_ in roles.items()}
        entries["tokenizer.ggml.add_bos_token"] = tokenizer.adds_bos
        try:
            again = HuggingFaceTokenizer(rebuild(entries, Path("tokenizer.json")), None)
        except CarambaError:
            continue
        if again.identity == tokenizer.identity:
            template = _template(companions)
            return entries if template is None else {**entries, _TEMPLATE: template}
    raise ExportError(
        "its tokenizer cuts texts by rules that llama.cpp has no name for",
        expected=f"one of {', '.join(RULES)}, or SentencePiece",
        hint="an origin that is a GGUF file brings the names along: --origin FILE.gguf",
    )


def _ways(described: Mapping[str, Any], count: int) -> Iterator[dict[str, Any]]:
    """A BPE tokenizer by every rule that is known, and as SentencePiece."""
    vocabulary = {**described["model"]["vocab"]}
    added = {token["content"]: token for token in described.get("added_tokens") or ()}
    vocabulary |= {content: token["id"] for content, token in added.items()}
    tokens = [f"[PAD{id_}]" for id_ in range(count)]
    for token, id_ in vocabulary.items():
        tokens[id_] = token
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"].get("merges") or ()]
    unknown = described["model"].get("unk_token")
    types = [_type(token, added.get(token), token in vocabulary, token == unknown) for token in tokens]
    common: dict[str, Any] = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    if described["model"].get("byte_fallback"):
        scores = [0.0] * count
        for rank, merge in enumerate(merges):
            made = vocabulary.get(merge.replace(" ", ""))
            if made is not None and scores[made] == 0.0:
                scores[made] = -float(rank + 1)
        types = [_BYTE if _is_byte(token) else kind for token, kind in zip(tokens, types, strict=True)]
        prefix = "Prepend" in json.dumps(described.get("normalizer"))
        yield {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": scores,
            **common,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.add_space_prefix": prefix,
        }
        return
    for rule in RULES:
        yield {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": rule,
            **common,
            "tokenizer.ggml.merges": merges,
        }


def _type(token: str, added: Mapping[str, Any] | None, known: bool, unknown: bool) -> int:
    if not known:
        return _UNUSED
    if unknown:
        return _UNKNOWN
    return _NORMAL if added is None else _CONTROL if added.get("special") else _USER_DEFINED


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _roles(tokenizer: HuggingFaceTokenizer, companions: Mapping[str, str]) -> dict[str, int]:
    """The ids of tokens with a meaning: by their names in the settings, or by their ids in those of generation."""
    settings = json.loads(companions.get("tokenizer_config.json", "{}"))
    found: dict[str, int] = {}
    for role in _KNOWN_BY_NAME:
        named = settings.get(f"{role}_token")
        text = named.get("content") if isinstance(named, Mapping) else named
        id_ = tokenizer.backend.token_to_id(text) if isinstance(text, str) else None
        if id_ is not None:
            found[role] = id_
    if tokenizer.bos is not None:
        found.setdefault("bos", tokenizer.bos)
    if tokenizer.end_of_sequence is not None:
        found.setdefault("eos", tokenizer.end_of_sequence)
    return found


def _template(companions: Mapping[str, str]) -> str | None:
    """The chat template, which has a file of its own in newer folders."""
    if "chat_template.jinja" in companions:
        return companions["chat_template.jinja"]
    found = json.loads(companions.get("tokenizer_config.json", "{}")).get("chat_template")
    if isinstance(found, list):
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None
