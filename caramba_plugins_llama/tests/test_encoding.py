"""Texts encoded in pieces: the ids of the whole text, whatever the tokenizer; what stands between and before texts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caramba_plugins_llama.gguf_tokenizer import RULES, rebuild
from caramba_plugins_llama.tokenizer import HuggingFaceTokenizer, add_bos
from caramba_plugins_standard import encoding
from caramba_plugins_standard.datasets import TextFile
from caramba_plugins_standard.encoding import Encoding, encode, pieces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from caramba_core.errors import InputError

from .test_tokenizers import TEXT, metadata, trained

WORDS = [
    "the",
    "It's",
    "thing",
    "\n",
    "\n\n",
    "  ",
    " ",
    "\r\n",
    "\t",
    "1984",
    "é日本",
    "🎉",
    "x.",
    "<|endoftext|>",
    "</a>",
]


def sentence_piece(prefix: bool) -> HuggingFaceTokenizer:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁", *"theingIs'x.<>|/a", "th", "he", "in", "ng", "the", "ing", "▁t", "▁the", "▁▁", "▁▁▁", "s▁", "▁thing"]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *words]
    data = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(words)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(n) for n in random.Random(0).sample(range(99), len(words))],
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    return HuggingFaceTokenizer(rebuild(data, Path()), 2)


def metaspace(scheme: str) -> HuggingFaceTokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme == "always")
    special = ["<unk>", "<|endoftext|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=500, special_tokens=special))
    return HuggingFaceTokenizer(backend, None)


def byte_level(rule: str) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(rebuild({**metadata(trained("gpt-2"), "gpt-2"), "tokenizer.ggml.pre": rule}, Path()), 0)


def squeezing() -> HuggingFaceTokenizer:
    """White space becomes single spaces, and a text begins without."""
    backend = trained("gpt-2")
    steps = [normalizers.Replace("\n", " "), normalizers.Replace("  ", " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps)
    return HuggingFaceTokenizer(backend, None)


MAKERS: dict[str, Any] = {
    **{rule: lambda rule=rule: byte_level(rule) for rule in RULES},
    "SentencePiece": lambda: sentence_piece(True),
    "SentencePiece without a first space": lambda: sentence_piece(False),
    "Metaspace": lambda: metaspace("always"),
    "Metaspace at the start": lambda: metaspace("first"),
    "squeezing": squeezing,
}


@pytest.mark.parametrize("maker", MAKERS)
def test_pieces_have_the_ids_of_the_whole_text(maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_PIECE", 64)
    monkeypatch.setattr(encoding, "_AROUND", 24)
    tokenizer = MAKERS[maker]()
    cut = 0

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False), st.integers(0, 400), st.integers(1, 400), st.booleans())
    def check(draw: random.Random, count: int, size: int, special_tokens: bool) -> None:
        nonlocal cut
        text = "".join(draw.choices(WORDS, k=count))
        parts = [text[at : at + size] for at in range(0, len(text), size)]
        found = list(pieces(parts, tokenizer, special_tokens=special_tokens))
        ids = [id_ for piece in found for id_ in tokenizer.encode(piece, special_tokens=special_tokens)]
        assert ids == tokenizer.encode(text, special_tokens=special_tokens)
        cut += len(found) > 1

    check()
    assert cut


def test_a_text_without_line_breaks_is_cut_before_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a space belongs to the word behind it, a cut in its place would lose it; what held is tried first next."""
    monkeypatch.setattr(encoding, "_PIECE", 400)
    tokenizer, calls = HuggingFaceTokenizer(trained("gpt-2"), None), list[int]()
    original, cuts = tokenizer.encode_batch, list(encoding._CUTS)
    monkeypatch.setattr(tokenizer, "encode_batch", lambda *given, **how: calls.append(1) or original(*given, **how))
    for _ in range(2):
        found = list(pieces(["the thing is " * 200], tokenizer, cuts))
        assert len(found) > 3
        assert [id_ for piece in found for id_ in tokenizer.encode(piece)] == tokenizer.encode("the thing is " * 200)
    assert len(calls) == 2 * (len(found) - 1)


def test_what_stands_around_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_BATCH", 8)
    backend = trained("gpt-2")
    backend.post_processor = processors.ByteLevel()
    end, bos = backend.token_to_id("<|endoftext|>"), backend.token_to_id("<|im_start|>")

    def ids(tokenizer: HuggingFaceTokenizer, add: bool | None, *texts: str) -> list[int]:
        found = list(encode(([text] for text in texts), tokenizer, Encoding(add_bos=add), "texts"))
        return np.concatenate([np.empty(0, np.uint16), *found]).tolist()

    plain = HuggingFaceTokenizer(backend, end)
    one, two = plain.encode("a thing"), plain.encode("the other thing")
    assert ids(plain, None, "", "a thing", "", "the other thing", "") == [*one, end, *two]
    assert ids(plain, None) == []
    with pytest.raises(InputError, match="texts is to begin with BOS, and the tokenizer has none"):
        ids(plain, True, "a")
    add_bos(backend, bos)
    adding = HuggingFaceTokenizer(backend, end)
    assert ids(adding, None, "a thing", "the other thing") == [bos, *one, end, bos, *two]
    assert ids(adding, False, "a thing", "the other thing") == [*one, end, *two]


def test_a_text_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time its ids come from the user's cache folder, unless something that decides them changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("caramba_plugins_standard.datasets._CACHED_CHARACTERS", 100)
    tokenizer = HuggingFaceTokenizer(trained("gpt-2"), None)
    (tmp_path / "a.txt").write_text(TEXT * 2)
    encoded: list[int] = []
    original = HuggingFaceTokenizer.encode_batch

    def counted(self: HuggingFaceTokenizer, texts: list[str], **options: Any) -> list[list[int]]:
        encoded.append(len(texts))
        return original(self, texts, **options)

    monkeypatch.setattr(HuggingFaceTokenizer, "encode_batch", counted)

    def opened(**options: Any) -> list[int]:
        return TextFile(path="a.txt", **options).open(tmp_path, tokenizer).ids.tolist()

    first = opened()
    assert first == [tokenizer.bos, *tokenizer.encode(TEXT * 2)]
    assert opened() == first
    assert len(encoded) == 1
    assert opened(add_bos=False) == first[1:]
    (tmp_path / "a.txt").write_text(TEXT * 3)
    assert len(opened()) > len(first)
    assert len(encoded) == 3
    kept = sorted((tmp_path / "cache" / "caramba" / "tokens").iterdir())
    assert len(kept) == 3
    for file in kept:
        file.write_bytes(file.read_bytes()[:50])
    assert len(opened()) > len(first)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(opened()) > len(first)


def test_json_lines_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    with pytest.raises(InputError, match="holds JSON lines, not one text"):
        TextFile(path="a.jsonl").open(tmp_path, HuggingFaceTokenizer(trained("gpt-2"), None))


def test_an_end_of_text_that_the_vocabulary_does_not_have(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a thing")
    backend = trained("gpt-2")
    state = json.loads(backend.to_str())
    state["added_tokens"], state["post_processor"] = [], None
    tokenizer = HuggingFaceTokenizer(Tokenizer.from_str(json.dumps(state)), 90_000)
    with pytest.raises(InputError, match="ends a text with token 90000, which its vocabulary does not have"):
        TextFile(path="a.txt").open(tmp_path, tokenizer)
