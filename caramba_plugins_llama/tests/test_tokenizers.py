"""Tokenizers: of a folder and of GGUF metadata, the same text to the same ids, and one identity for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caramba_plugins_llama.gguf_tokenizer import RULES, rebuild
from caramba_plugins_llama.hf_folder import HuggingFaceFolder
from caramba_plugins_llama.tokenizer import HuggingFaceTokenizer, read_tokenizer
from caramba_plugins_standard.datasets import TextFile, TokenArray
from caramba_plugins_standard.texts import FileTexts
from caramba_plugins_standard.tokenizing import prepare
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from caramba_core.errors import InputError

from .damage import safetensors_bytes

TEXT = (
    "In 1984 there were 12,345 cats; it's naïve café 日本 🎉\n\n  def f(x):\n\treturn x — we'll see, they'd say. "
    "The thing that the other thing then thought. IT'S\r\n\r\n   end  "
)
SPECIAL = ["<|endoftext|>", "<|im_start|>"]
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
WORDS = {"llama-bpe": rf"{LETTERS}|\p{{N}}{{1,3}}|{REST}", "qwen2": rf"{LETTERS}|\p{{N}}|{REST}"}


def trained(pre: str) -> Tokenizer:
    """A tokenizer trained on the text, as Hugging Face builds this kind; specials stand beside the vocabulary."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "smollm":
        steps: list[Any] = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    elif pre == "gpt-2":
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        split = pre_tokenizers.Split(Regex(WORDS[pre]), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator([TEXT * 3], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair=None, special_tokens=[("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))]
    )
    return tokenizer


def metadata(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    """What GGUF keeps of a tokenizer."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
    }


@pytest.fixture(params=["smollm", "gpt-2", "llama-bpe", "qwen2"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[HuggingFaceTokenizer, HuggingFaceTokenizer]:
    original = trained(request.param)
    original.save(str(tmp_path / "tokenizer.json"))
    rebuilt = rebuild(metadata(original, request.param), tmp_path)
    return read_tokenizer(tmp_path / "tokenizer.json", "<|im_start|>"), HuggingFaceTokenizer(rebuilt, 331)


def test_rebuilt_from_metadata(pair: tuple[HuggingFaceTokenizer, HuggingFaceTokenizer]) -> None:
    original, rebuilt = pair
    assert original.identity == rebuilt.identity
    assert original.vocab_size == rebuilt.vocab_size
    assert original.end_of_text == rebuilt.end_of_text == original.backend.token_to_id("<|endoftext|>")
    for text in (TEXT, TEXT * 2 + SPECIAL[1] + "x", SPECIAL[0], "", " ", "e\u0301"):
        assert original.encode(text) == rebuilt.encode(text)
        assert rebuilt.decode(rebuilt.encode(text)) == original.decode(original.encode(text))


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    tokenizer = HuggingFaceTokenizer(_smollm(), None)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def _smollm(cache: dict[str, Tokenizer] = {}) -> Tokenizer:  # noqa: B006  trained once
    if not cache:
        cache["smollm"] = trained("smollm")
    return cache["smollm"]


def test_identity_sees_what_changes_ids_and_nothing_else(tmp_path: Path) -> None:
    base = trained("smollm")
    identity = HuggingFaceTokenizer(base, None).identity

    def same(change: Any) -> bool:
        other = Tokenizer.from_str(base.to_str())
        change(other)
        return HuggingFaceTokenizer(other, None).identity == identity

    byte_level = pre_tokenizers.ByteLevel
    assert same(lambda t: setattr(t, "post_processor", processors.ByteLevel()))
    assert same(lambda t: setattr(t, "decoder", decoders.Fuse()))
    assert same(lambda t: t.enable_truncation(3))
    assert not same(lambda t: setattr(t, "pre_tokenizer", byte_level(add_prefix_space=False)))
    assert not same(lambda t: setattr(t, "pre_tokenizer", byte_level(add_prefix_space=True)))
    assert not same(lambda t: setattr(t, "normalizer", normalizers.Lowercase()))
    assert not same(lambda t: t.add_tokens(["thing"]))
    assert not same(lambda t: t.add_special_tokens(["<x>"]))
    assert same(lambda t: None)


def test_truncation_and_padding_of_a_file_are_not_applied(tmp_path: Path) -> None:
    tokenizer = trained("smollm")
    expected = tokenizer.encode(TEXT, add_special_tokens=False).ids
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=500)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path / "tokenizer.json", None).encode(TEXT) == expected


def test_sentence_piece(tmp_path: Path) -> None:
    """Scores decide which merge comes first; bytes stand in for what has no token."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    words = ["▁", "t", "h", "e", "n", "he", "th", "the", "▁the", "en", "then", "▁then"]
    tokens = [*(token for token, _ in pieces), *words]
    data = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*(kind for _, kind in pieces), *(1 for _ in words)],
        "tokenizer.ggml.scores": [0.0] * len(pieces)
        + [-100.0, -99.0, -98.0, -97.0, -96.0, -5.0, -1.0, -2.0, -3.0, -9.0, -4.0, -3.5],
    }
    tokenizer = HuggingFaceTokenizer(rebuild(data, tmp_path), 2)
    assert [tokens[i] for i in tokenizer.encode("the then")] == ["▁the", "▁then"]
    assert [tokens[i] for i in tokenizer.encode("hen")] == ["▁", "he", "n"]
    assert [tokens[i] for i in tokenizer.encode("thé")] == ["▁", "th", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("the thé  then")) == "the thé  then"
    assert tokenizer.end_of_text == 2
    data["tokenizer.ggml.add_space_prefix"] = False
    assert [tokens[i] for i in HuggingFaceTokenizer(rebuild(data, tmp_path), 2).encode("hen")] == ["he", "n"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "of kind 'bert'"),
        ({"tokenizer.ggml.pre": "viking"}, "by the rule 'viking'"),
        ({"tokenizer.ggml.case": True}, "tokenizer.ggml.case is True: this key is not known"),
        (
            {"tokenizer.ggml.remove_extra_whitespaces": True},
            "remove_extra_whitespaces is True: text would be normalized",
        ),
        ({"tokenizer.ggml.tokens": []}, "has no tokens"),
        ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, "the token 'a' twice"),
        ({"tokenizer.ggml.merges": None}, "has no merges"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "merge 0 .* does not join"),
        ({"tokenizer.ggml.merges": ["a zz"]}, "merge 0 .* does not join"),
        ({"tokenizer.ggml.model": "llama"}, "no score for each token"),
    ],
)
def test_metadata_that_makes_no_tokenizer(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rebuild({**metadata(_smollm(), "smollm"), **change}, tmp_path)


def test_end_of_text_of_a_folder(tmp_path: Path) -> None:
    tokenizer = trained("gpt-2")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    plain = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    for config, settings_, expected in (
        ({"eos_token_id": 1}, None, 1),
        ({"eos_token_id": [1, 0]}, None, 1),
        ({"eos_token_id": 1}, {"eos_token": "a"}, 0),
        ({}, {"eos_token": {"content": "b"}}, 1),
        ({}, None, None),
    ):
        plain.save(str(tmp_path / "tokenizer.json"))
        path = tmp_path / "tokenizer_config.json"
        path.unlink(missing_ok=True)
        if settings_ is not None:
            path.write_text(json.dumps(settings_))
        found = HuggingFaceFolder(tmp_path, tmp_path, config, {}).tokenizer()
        assert found is not None
        assert found.end_of_text == expected
    (tmp_path / "tokenizer.json").unlink()
    assert HuggingFaceFolder(tmp_path, tmp_path, {}, {}).tokenizer() is None


# ------------------------------------------------------------------------------------------------ of other makers


@pytest.mark.parametrize(
    "rule", ["llama-bpe", "falcon3", "pixtral", "qwen2", "deepseek-r1-qwen", "tekken", "gpt-4o", "llama4"]
)
def test_words_as_transformers_splits_them(rule: str) -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    (pattern,) = RULES[rule].patterns
    splits = [pre_tokenizers.Split(Regex(text), "isolated") for text in (pattern, GGUF_PRE_TOKENIZER_SPLITS[rule])]
    for text in (TEXT, "HelloWorld ÉcoleÀla e\u0301a IT'S/we'll//x\n 12345 ß\u0301Ω"):
        assert splits[0].pre_tokenize_str(text) == splits[1].pre_tokenize_str(text)


@pytest.mark.parametrize("rule", ["default", "", None])
def test_words_without_a_rule(tmp_path: Path, rule: str | None) -> None:
    """llama.cpp takes marks, and digits by three, apart; GPT-2's rule does not."""
    data = metadata(_smollm(), "smollm")
    del data["tokenizer.ggml.pre"]
    rebuilt = rebuild(data if rule is None else {**data, "tokenizer.ggml.pre": rule}, tmp_path)
    words = [word for word, _ in rebuilt.pre_tokenizer.pre_tokenize_str("It's 12345 x+ y")]
    assert words == ["It", "'", "s", "Ġ", "123", "45", "Ġx", "+", "Ġy"]


def test_padded_vocabularies_are_the_same_tokenizer(tmp_path: Path) -> None:
    """GGUF fills the rows of the embeddings that have no token; ``tokenizer.json`` does not know them."""
    original = trained("smollm")
    data = metadata(original, "smollm")
    count = len(data["tokenizer.ggml.tokens"])
    data["tokenizer.ggml.tokens"] += [f"[PAD{n}]" for n in range(count, count + 9)]
    data["tokenizer.ggml.token_type"] += [5] * 9
    rebuilt = HuggingFaceTokenizer(rebuild(data, tmp_path), None)
    assert rebuilt.identity == HuggingFaceTokenizer(original, None).identity
    assert rebuilt.vocab_size == count
    data["tokenizer.ggml.token_type"][-1] = 4
    assert HuggingFaceTokenizer(rebuild(data, tmp_path), None).identity != rebuilt.identity


@pytest.mark.parametrize(
    "files",
    [
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {"400": {"content": "<a>", "special": True}, "90": {"content": "it"}}
            }
        },
        {
            "tokenizer_config.json": {
                "eos_token": "<eos>",
                "pad_token": {"__type": "AddedToken", "content": "th", "lstrip": True},
            }
        },
        {"tokenizer_config.json": {"additional_special_tokens": ["<|endoftext|>", "<b>", "he"]}},
        {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<img>"}, "add_bos_token": True}},
        {"special_tokens_map.json": {"eos_token": {"content": "<eos>", "special": True}, "bos_token": "<s>"}},
        {"tokenizer_config.json": {"added_tokens_decoder": {}}, "special_tokens_map.json": {"eos_token": "<eos>"}},
        {"added_tokens.json": {"<z>": 334, "<y>": 333}, "special_tokens_map.json": {"eos_token": "<y>"}},
    ],
)
def test_added_tokens_that_stand_beside(tmp_path: Path, files: dict[str, Any]) -> None:
    import transformers

    trained("gpt-2").save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    found = HuggingFaceFolder(tmp_path, tmp_path, {}, {}).tokenizer()
    assert found is not None
    text = f"{TEXT} <a>it<b> th the<eos></s> <img> <s>x<z> <y>he"
    assert found.encode(text, special_tokens=True) == oracle.encode(text, add_special_tokens=False)
    assert found.vocab_size == len(oracle)


def test_tokens_that_only_look_like_the_end(tmp_path: Path) -> None:
    """Gemma has ``</s>`` for a tag of HTML, and ends with ``<eos>``."""
    tokenizer = trained("gpt-2")
    tokenizer.add_tokens([AddedToken("</s>", special=False)])
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != "<|endoftext|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    found = HuggingFaceFolder(tmp_path, tmp_path, {}, {}).tokenizer()
    assert found is not None
    assert found.end_of_text == found.encode("<eos>", special_tokens=True)[0]


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("add", [True, False, None])
@pytest.mark.parametrize("cls", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
def test_bos_as_transformers_puts_it(tmp_path: Path, template: bool, add: bool | None, cls: str) -> None:
    import transformers

    backend = trained("gpt-2")
    if not template:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": cls, "bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, **({} if add is None else {"add_bos_token": add})})
    )
    found = HuggingFaceFolder(tmp_path, tmp_path, {"model_type": "llama"}, {}).tokenizer()
    assert found is not None
    assert found.bos == backend.token_to_id("<|im_start|>")
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    added = oracle.encode("th")[0] == found.bos
    assert added == template
    assert found.adds_bos == (template or add is True)


def test_what_ends_a_generated_text(tmp_path: Path) -> None:
    trained("gpt-2").save(str(tmp_path / "tokenizer.json"))
    settings_, generation = tmp_path / "tokenizer_config.json", tmp_path / "generation_config.json"
    settings_.write_text(json.dumps({"eos_token": "<|im_start|>"}))
    assert HuggingFaceFolder(tmp_path, tmp_path, {}, {}).tokenizer().stops == {331}  # type: ignore[union-attr]
    config = {"eos_token_id": [5, 6]}
    assert HuggingFaceFolder(tmp_path, tmp_path, config, {}).tokenizer().stops == {5, 6}  # type: ignore[union-attr]
    generation.write_text(json.dumps({"eos_token_id": 7}))
    assert HuggingFaceFolder(tmp_path, tmp_path, config, {}).tokenizer().stops == {7}  # type: ignore[union-attr]


def test_special_tokens_that_a_text_spells_are_text(pair: tuple[HuggingFaceTokenizer, HuggingFaceTokenizer]) -> None:
    for tokenizer in pair:
        special = {tokenizer.backend.token_to_id(token) for token in SPECIAL}
        text = "a<|endoftext|>b <|im_start|>"
        assert not special & set(tokenizer.encode(text))
        assert special < set(tokenizer.encode(text, special_tokens=True))
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_batch([text, "x"]) == [tokenizer.encode(text), tokenizer.encode("x")]


def test_ids_beyond_the_size_of_the_vocabulary(tmp_path: Path) -> None:
    """A vocabulary that leaves ids out: its largest id counts, in the array's type and in the note beside it."""
    letters = {letter: id_ for id_, letter in enumerate("ab")} | {"c": 65535, "d": 65536, "e": 70000}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    assert HuggingFaceTokenizer(tokenizer, None).vocab_size == 70001
    (tmp_path / "text").write_text("abcde")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes({}))
    prepare([FileTexts(tmp_path / "text")], tmp_path / "ids.npy", str(tmp_path))
    ids = TokenArray(path=str(tmp_path / "ids.npy")).open(tmp_path, None).ids
    assert (ids.dtype, ids.tolist()) == (np.dtype("uint32"), [0, 1, 65535, 65536, 70000])
    text = TextFile(path="text").open(tmp_path, HuggingFaceTokenizer(tokenizer, None))
    assert text.ids.tolist() == ids.tolist()
