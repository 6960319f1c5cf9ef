"""What a GGUF file says in unusual ways is read as llama.cpp reads it, or refused by name."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from caramba_plugins_llama.families import ARCHITECTURES
from caramba_plugins_llama.gguf_header import TYPES, UNREAD
from caramba_plugins_llama.gguf_tokenizer import RULES, rebuild
from caramba_plugins_llama.known_keys import GGUF
from caramba_plugins_standard.loading import find_loader
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, trainers

from caramba_core.errors import CarambaError, InputError

from .conftest import random_tokens, read_model, write_oracle
from .llama_cpp import INSTALLED, ends_of, logits_of, token_ids_of
from .test_gguf import GRANITE, LLAMA3, write_gguf

VOCABULARY: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(94))],
    "tokenizer.ggml.scores": [0.0] * 97,
    "tokenizer.ggml.token_type": [2, 3, 3, *[1] * 94],
}
"""llama.cpp takes the size of the vocabulary from here."""
TOKENS = random_tokens(40, batch=1)


def same_logits(path: Path) -> None:
    expected = logits_of(path, TOKENS[0].tolist())
    assert not isinstance(expected, str), f"llama.cpp does not read it: {expected}"
    torch.testing.assert_close(read_model(path)(TOKENS)[0], torch.tensor(expected), rtol=0, atol=5e-5)


PLAIN = [name for name, architecture in ARCHITECTURES.items() if not architecture.latent]
"""Those of ordinary attention; latent ones are in ``test_latent.py``."""

SETTINGS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "smollm3": {"num_hidden_layers": 5},
    "granite": GRANITE,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each architecture, with offsets where it has any; heads as wide as llama.cpp's default."""
    folder = tmp_path_factory.mktemp("architectures")
    for name in PLAIN:
        write_oracle(folder / name, name, **SETTINGS.get(name, {}))
    return folder


def written(models: Path, path: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A file of one of the models; ``without`` names metadata and tensors (by ending) to leave out."""
    without = tuple(changes.pop("without", ()))
    extra = {key.replace("__", "."): value for key, value in changes.pop("extra", {}).items()}
    write_gguf(path, models / architecture, architecture, extra={**VOCABULARY, **extra}, without=without)
    return path


@pytest.mark.parametrize("architecture", PLAIN)
@pytest.mark.parametrize(
    ("extra", "without"),
    [
        ({}, ()),
        ({}, ("head_count_kv", "attn_k.weight")),
        ({}, ("key_length", "freq_base")),
        ({"rope.scaling.factor": 2.5}, ()),
        ({"rope.scale_linear": 2.5}, ()),
        ({"rope.scaling.factor": 0.0}, ()),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 2.5}, ()),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 2.5, "rope.scale_linear": 4.0}, ()),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}, ()),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, ()),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 0.7}, ()),
        ({"rope.scaling.type": "yarn"}, ()),
        ({"attention.head_count": [6, 6, 6], "attention.head_count_kv": [2, 2, 2]}, ("head_count", "head_count_kv")),
        ({"attention.causal": True, "expert_count": 0, "attention.value_length": 8}, ()),
        ({"attention.sliding_window": 64}, ()),
    ],
)
def test_metadata(models: Path, tmp_path: Path, architecture: str, extra: dict[str, Any], without: Any) -> None:
    if "attn_k.weight" in without:  # as many keys as queries
        sizes = {**SETTINGS.get(architecture, {}), "num_key_value_heads": 6}
        write_oracle(tmp_path / architecture, architecture, **sizes)
        models, without = tmp_path, ("head_count_kv",)
    layers = SETTINGS.get(architecture, {}).get("num_hidden_layers", 3)
    extra = {
        f"{architecture}.{key}": value[:1] * layers if isinstance(value, list) else value
        for key, value in extra.items()
    }
    same_logits(written(models, tmp_path / "m.gguf", architecture, extra=extra, without=without))


OFFSETS = {
    "llama": [
        ("attn_q.bias", "attn_k.bias"),
        ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
        ("attn_output.bias",),
        ("blk.1.attn_q.bias", "blk.0.ffn_up.bias"),
        ("ffn_gate.bias", "ffn_up.bias"),
        ("bias",),
    ],
    "qwen2": [("attn_k.bias",), ("blk.1.attn_q.bias", "blk.2.attn_v.bias")],
}


@pytest.mark.parametrize(("architecture", "without"), [(name, gone) for name in OFFSETS for gone in OFFSETS[name]])
def test_some_offsets(models: Path, tmp_path: Path, architecture: str, without: tuple[str, ...]) -> None:
    """Those that are missing are zero."""
    same_logits(written(models, tmp_path / "m.gguf", architecture, without=without))


@pytest.mark.parametrize(
    ("extra", "without", "message"),
    [
        ({"llama.attention.causal": False}, (), "llama.attention.causal is False: tokens would see the text behind"),
        ({"llama.rope.scaling.attn_factor": 0.5}, (), "attn_factor is 0.5: it is read with yarn alone"),
        ({"llama.attention.scale": 0.1}, (), r"llama\.attention\.scale is 0\.1.*: this key is not known"),
        ({"llama.attention.value_length": 4}, (), "values have 4 dimensions a head, keys 8"),
        ({"llama.attention.sliding_window": 7}, (), "sliding_window is 7: llama.cpp has no window for this"),
        ({"llama.feed_forward_length": [80, 64, 80]}, ("feed_forward_length",), "layers of several sizes are not read"),
        ({}, ("head_count",), "llama.attention.head_count is missing"),
        (
            {},
            ("rms_epsilon", "context_length"),
            "context_length is missing\n    llama.attention.layer_norm_rms_epsilon",
        ),
        ({"llama.context_length": "long"}, ("context_length",), "llama.context_length is 'long', not a number"),
        ({"qwen2.block_count": 3}, (), "qwen2.block_count is 3: this key is not known"),
        ({"llama.embedding_scale": 2.0}, (), "llama.embedding_scale is 2.0: this key is not known"),
        ({"general.type": "adapter"}, (), "general.type is 'adapter': the file holds no model"),
    ],
)
def test_what_is_refused(models: Path, tmp_path: Path, extra: dict[str, Any], without: Any, message: str) -> None:
    path = written(models, tmp_path / "m.gguf", extra=extra, without=without)
    with pytest.raises(InputError, match=message):
        find_loader(path).model()


def test_rotary_factors_of_any_list(models: Path, tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": np.array([1.0, 0.25, 1e30, 3.0], dtype=np.float32)}
    write_gguf(tmp_path / "m.gguf", models / "llama", "llama", extra=VOCABULARY, tensors=factors)
    same_logits(tmp_path / "m.gguf")


@pytest.mark.parametrize("scale", [0.0, 2.0])
@pytest.mark.parametrize("key", ["embedding_scale", "residual_scale", "attention.scale"])
def test_factors_of_granite(models: Path, tmp_path: Path, key: str, scale: float) -> None:
    """One of 0 is none, as a missing one is."""
    same_logits(written(models, tmp_path / "m.gguf", "granite", extra={f"granite.{key}": scale}))
    same_logits(written(models, tmp_path / "without.gguf", "granite", without=(key,)))


def test_granite_needs_a_factor_of_logits(models: Path, tmp_path: Path) -> None:
    same_logits(written(models, tmp_path / "m.gguf", "granite", extra={"granite.logit_scale": 2.0}))
    written(models, tmp_path / "zero.gguf", "granite", extra={"granite.logit_scale": 0.0})
    written(models, tmp_path / "without.gguf", "granite", without=("logit_scale",))
    for name, message in (("zero", "logits_scaling is 0.0, not a positive"), ("without", "logit_scale is missing")):
        with pytest.raises(InputError, match=message):
            find_loader(tmp_path / f"{name}.gguf").model()


def test_granite_without_positions_is_refused(models: Path, tmp_path: Path) -> None:
    written(models, tmp_path / "m.gguf", "granite", extra={"granite.rope.scaling.finetuned": False})
    with pytest.raises(InputError, match=r"finetuned is False: none of its layers would have rotary positions"):
        find_loader(tmp_path / "m.gguf").model()


def test_rotary_factors_of_longrope(models: Path, tmp_path: Path) -> None:
    factors = {f"rope_factors_{name}.weight": np.linspace(1, 4, 4, dtype=np.float32) for name in ("long", "short")}
    write_gguf(tmp_path / "m.gguf", models / "llama", "llama", extra=VOCABULARY, tensors=factors)
    with pytest.raises(InputError, match="longrope's, which change with the length of the text"):
        find_loader(tmp_path / "m.gguf").model()


ELSEWHERE = """
    attention.scale attention.clamp_kqv attention.max_alibi_bias attention.key_length_swa attention.output_scale
    attention.sliding_window_pattern attention.temperature_scale embedding_scale final_logit_softcapping logit_scale
    nextn_predict_layers pooling_type residual_scale rope.dimension_sections rope.freq_base_swa rope.scaling.alpha
    rope.scaling.yarn_beta_fast rope.scaling.yarn_ext_factor rope.scaling.yarn_log_multiplier use_parallel_residual
"""
"""What llama.cpp reads of other architectures."""


@pytest.mark.parametrize(
    ("architecture", "extra"), [("qwen2", {}), ("llama", {"llama.rope.scaling.factor": 2.0})], ids=["qwen2", "twice"]
)
def test_rotary_factors_that_llama_cpp_has_no_place_for(tmp_path: Path, architecture: str, extra: Any) -> None:
    write_oracle(tmp_path / "hf", architecture, rope_parameters=LLAMA3)
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", architecture, extra={**VOCABULARY, **extra})
    with pytest.raises(InputError, match=r"rope_freqs\.weight is read of llama alone, and without another scaling"):
        find_loader(tmp_path / "m.gguf").model()


def test_rotary_factors_of_llama_3(tmp_path: Path) -> None:
    write_oracle(tmp_path / "hf", "llama", rope_parameters=LLAMA3)
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama", extra=VOCABULARY, parts=10)
    same_logits(max(tmp_path.glob("m-00001-of-*.gguf")))
    assert read_model(max(tmp_path.glob("m-*.gguf"))) is not None


KEYS = st.one_of(
    st.sampled_from([key for key in (*GGUF.read, *GGUF.fixed, *GGUF.ignored) if key != "block_count"]),
    st.sampled_from(ELSEWHERE.split()),
    st.from_regex(r"[a-z][a-z_.]{2,14}[a-z]", fullmatch=True).filter(lambda key: "__" not in key),
)
VALUES = st.one_of(
    st.booleans(),
    st.sampled_from([0, 1, 3, 8, 48, 64, 0.0, 0.5, 2.0, 1e-5, "none", "yarn", "linear", [8, 8, 8], [1, 2, 3]]),
)


@pytest.mark.parametrize("architecture", PLAIN)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=st.dictionaries(KEYS, VALUES, min_size=1, max_size=2))
@example(change={"attention.causal": False})
@example(change={"rope.scaling.factor": 2.0})
@example(change={"attention.scale": 0})
@example(change={"rope.scaling.type": "yarn", "rope.scaling.attn_factor": 0.5})
def test_one_key_more(models: Path, tmp_path: Path, architecture: str, change: dict[str, Any]) -> None:
    extra, known = {f"{architecture}.{key}": value for key, value in change.items()}, ARCHITECTURES[architecture].keys
    path = written(models, tmp_path / "m.gguf", architecture, extra=extra, without=tuple(change))
    try:
        read_model(path)
    except CarambaError as error:
        if not set(change) & {*known.read, *known.fixed}:
            assert any(key in str(error) for key in change)
        return
    assert set(change) <= {*known.read, *known.fixed, *known.ignored}
    if not INSTALLED:
        return
    expected = logits_of(path, TOKENS[0].tolist())
    if not (isinstance(expected, str) and "has wrong type" in expected):  # it takes no 2 for 2.0
        same_logits(path)


# ------------------------------------------------------------------------------------------------ types and parts


def test_every_type_of_the_library_is_read_or_named() -> None:
    sizes = {kind.name: gguf.GGML_QUANT_SIZES[kind] for kind in gguf.GGMLQuantizationType}
    readable = {kind.name for kind in gguf.quants._type_traits} | {"F64", "F32", "F16", "BF16"}
    assert {name: (block, size) for name, block, size in TYPES.values()} == {name: sizes[name] for name in readable}
    assert all(gguf.GGMLQuantizationType[name] == number for number, (name, _, _) in TYPES.items())
    assert set(gguf.GGMLQuantizationType) <= {*TYPES, *UNREAD}


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "MXFP4", "IQ2_XS", "IQ1_S"])
def test_types_that_the_library_dequantizes(tmp_path: Path, kind: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_attention_heads": 4}
    write_oracle(tmp_path / "hf", "llama", **sizes, num_hidden_layers=1)
    quantized = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quantized]

    def blocks(value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Blocks with small scales: most of these types have no writer in the library."""
        raw = np.random.default_rng(0).integers(0, 256, (value.shape[0], value.shape[1] // block, size), dtype=np.uint8)
        scale = np.frombuffer(np.float16(0.01).tobytes(), dtype=np.uint8)
        if kind == "MXFP4":
            raw[..., 0] = 121
        elif kind.startswith("TQ"):
            raw[..., -2:] = scale
        else:
            raw[..., :2] = scale
        return raw.reshape(value.shape[0], -1)

    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama", quantized, extra=VOCABULARY, quantize=blocks)
    expected = logits_of(tmp_path / "m.gguf", TOKENS[0].tolist())
    found = read_model(tmp_path / "m.gguf")(TOKENS)[0]
    error = (found - torch.tensor(expected)).norm() / found.norm()
    assert error < 0.05, "llama.cpp rounds activations to 8 bits for these types"


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_file_in_parts(models: Path, tmp_path: Path, architecture: str) -> None:
    whole = written(models, tmp_path / "m.gguf", architecture)
    write_gguf(tmp_path / "m.gguf", models / architecture, architecture, extra=VOCABULARY, parts=10)
    names = sorted(path.name for path in tmp_path.glob("m-*.gguf"))
    assert len(names) > 2
    expected = read_model(whole)(TOKENS)
    for name in (names[0], names[-1]):
        assert torch.equal(read_model(tmp_path / name)(TOKENS), expected)
    same_logits(tmp_path / names[0])

    shutil.copy(tmp_path / names[0], tmp_path / "renamed.gguf")
    with pytest.raises(InputError, match=f"is one part of {len(names)}, and its name does not tell the others'"):
        find_loader(tmp_path / "renamed.gguf")
    shutil.copy(tmp_path / names[0], tmp_path / names[1])
    with pytest.raises(InputError, match=f"{names[1]} is not part 2 of"):
        find_loader(tmp_path / names[0])
    (tmp_path / names[1]).unlink()
    with pytest.raises(InputError, match=f"missing: {names[1]}"):
        find_loader(tmp_path / names[0])


# ------------------------------------------------------------------------------------------------ tokenizers

COMPOSED = ("qwen2", "deepseek-r1-qwen")
BY_CASE = ("tekken", "gpt-4o", "llama4")
"""llama.cpp does not compose text, knows case in ASCII alone, and takes marks for no letters; the tokenizers that were
trained do otherwise, and so does caramba."""
CHARACTERS = "abcXYZ '1234567890\n\r\t.,;!?$+<=>^~|/\\-_éÀßñ日本のテ한글ابתΩωДд\u0301\u0300٣½²€🎉\u200b\u00a0  "


def texts_of(draw: random.Random, rule: str | None = None) -> list[str]:
    words = ["it's", "It's", "IT'S we'LL", "HelloWorld fooBarBAZ ÉcoleÀ", "/path/to//x 1234567", "<unk> <s>a</s>", ""]
    words += ["".join(draw.choices(CHARACTERS, k=draw.randint(1, 25))) for _ in range(200)]
    gone = "\u0301\u0300" if rule in COMPOSED else "\u0301\u0300éÉÀßñΩωДд" if rule in BY_CASE else ""
    return ["".join(letter for letter in word if letter not in gone) for word in words]


@pytest.mark.parametrize("rule", [*RULES, None])
def test_words(tmp_path: Path, rule: str | None) -> None:
    """Of every rule, and of none: merges learned from words that are split so are applied to other texts."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    data: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": letters,
        "tokenizer.ggml.merges": [],
    }
    if rule is not None:
        data["tokenizer.ggml.pre"] = rule
    draw = random.Random(rule)
    learning = rebuild(data, tmp_path)
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=letters, show_progress=False)
    learning.train_from_iterator(texts_of(draw) * 2, trainer)
    vocabulary = learning.get_vocab()
    tokens = [*sorted(vocabulary, key=lambda token: vocabulary[token]), "<|endoftext|>", "<think>"]
    data["tokenizer.ggml.tokens"] = tokens
    data["tokenizer.ggml.token_type"] = [*[1] * (len(tokens) - 2), 3, 4]
    data["tokenizer.ggml.merges"] = [" ".join(merge) for merge in json.loads(learning.to_str())["model"]["merges"]]
    write_oracle(tmp_path / "hf", "llama", vocab_size=len(tokens), num_hidden_layers=1)
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama", extra=data)
    texts = [*texts_of(draw, rule), "<think>a<|endoftext|>it's"]
    tokenizer = find_loader(tmp_path / "m.gguf").tokenizer()
    assert tokenizer is not None
    assert [tokenizer.encode(text, special_tokens=True) for text in texts] == token_ids_of(tmp_path / "m.gguf", texts)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece(tmp_path: Path, prefix: bool) -> None:
    """With unknown, control, user-defined and unused tokens, as texts spell them."""
    named = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    words = ["▁", *"abcXYZ'1itsI.,", "it", "'s", "▁it", "▁a", "ab", "abc", "▁abc", "▁▁", "<s", "<unk", "s>", "<", ">"]
    last = [("<think>", 4), ("[PAD300]", 5), ("[PAD301]", 5)]
    tokens = [*(token for token, _ in named), *words, *(token for token, _ in last)]
    draw = random.Random(0)
    data = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [*(kind for _, kind in named), *[1] * len(words), *(kind for _, kind in last)],
        "tokenizer.ggml.scores": [0.0] * len(named) + [-float(n) for n in draw.sample(range(1, 90), len(words) + 3)],
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    write_oracle(tmp_path / "hf", "llama", vocab_size=len(tokens), num_hidden_layers=1)
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama", extra=data)
    texts = [*texts_of(draw), "a<think> <unk>it's<s>abc</s>", "<0x41>", "<think>"]
    tokenizer = find_loader(tmp_path / "m.gguf").tokenizer()
    assert tokenizer is not None
    assert [tokenizer.encode(text, special_tokens=True) for text in texts] == token_ids_of(tmp_path / "m.gguf", texts)


@pytest.mark.parametrize("rule", [*RULES, None])
@pytest.mark.parametrize("added", [None, True, False])
def test_what_stands_around_a_text(tmp_path: Path, rule: str | None, added: bool | None) -> None:
    """BOS in front of it, and the ids that end it: of a sequence, a turn, a message, and those known by their names."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    named = ["<bos>", "<eos>", "<eot>", "<eom>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<EOT>"]
    data: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*letters, "ab", *named],
        "tokenizer.ggml.token_type": [*[1] * len(letters), 1, *[3] * len(named)],
        "tokenizer.ggml.merges": ["a b"],
        **{f"tokenizer.ggml.{name[1:-1]}_token_id": len(letters) + 1 + index for index, name in enumerate(named[:4])},
        **({} if rule is None else {"tokenizer.ggml.pre": rule}),
        **({} if added is None else {"tokenizer.ggml.add_bos_token": added}),
    }
    check_around(tmp_path, data)


@pytest.mark.parametrize("change", [{}, {"tokenizer.ggml.add_bos_token": False}, {"tokenizer.ggml.bos_token_id": 2}])
def test_what_stands_around_a_text_of_sentence_piece(tmp_path: Path, change: dict[str, Any]) -> None:
    named = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256)), ("▁", 1)]
    data = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [token for token, _ in named],
        "tokenizer.ggml.token_type": [kind for _, kind in named],
        "tokenizer.ggml.scores": [0.0] * len(named),
    }
    check_around(tmp_path, {**data, **change})


def check_around(folder: Path, data: dict[str, Any]) -> None:
    write_oracle(folder / "hf", "llama", vocab_size=len(data["tokenizer.ggml.tokens"]), num_hidden_layers=1)
    write_gguf(folder / "m.gguf", folder / "hf", "llama", extra=data)
    tokenizer = find_loader(folder / "m.gguf").tokenizer()
    assert tokenizer is not None
    bos = [tokenizer.bos] if tokenizer.adds_bos else []
    assert ([*bos, *tokenizer.encode("t1 a")], sorted(tokenizer.stops)) == ends_of(folder / "m.gguf", "t1 a")
