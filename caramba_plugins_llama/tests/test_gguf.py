"""GGUF files, written by the library ``gguf`` itself: the same model as the folder that they were made from."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from caramba_plugins_llama.gguf_file import GgufFile
from caramba_plugins_llama.gguf_header import GgufTensor, read_header
from caramba_plugins_llama.gguf_values import values_of
from caramba_plugins_llama.head_rows import head_order, inverse, rows_in_order
from caramba_plugins_llama.hf_folder import HuggingFaceFolder
from caramba_plugins_standard.loading import find_loader
from caramba_plugins_standard.rope import Rope
from caramba_plugins_testing.loaders import check_loader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from caramba_core.errors import CarambaError, InputError, PluginError

from .conftest import random_tokens, read_model, write_oracle

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 20000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.4,
    "logits_scaling": 0.7,
}
Q4_1_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def write_gguf(
    path: Path,
    folder: Path,
    architecture: str,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    tensors: dict[str, Any] | None = None,
    quantize: Callable[[Any], Any] | None = None,
    parts: int = 0,
) -> None:
    """The folder's model as llama.cpp's converter writes it: its names, its row order, norms and offsets in F32.

    ``without``: keys and tensors left out, by the end of their names; ``parts``: tensors a part of a split file.
    """
    config = json.loads((folder / "config.json").read_text())
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=parts)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        plain = Rope(theta=rope["rope_theta"]).frequencies(config["head_dim"])
        fields = {key: value for key, value in rope.items() if key not in ("rope_type", "rope_theta")}
        scaled = Rope(theta=rope["rope_theta"], scaling="llama3", **fields).frequencies(config["head_dim"])
        factors = np.array([a / b for a, b in zip(plain, scaled, strict=True)], dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
    if architecture == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    for key, value in (extra or {}).items():
        kind_of_value = gguf.GGUFValueType.get_type(value)
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if type(value) is int else kind_of_value)
    for key in [key for key in writer.kv_data[0] if without and key.endswith(without)]:
        if key not in (extra or {}):
            del writer.kv_data[0][key]
    for key, value in (tensors or {}).items():
        writer.add_tensor(key, value)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config["num_hidden_layers"]
    )
    for key, value in load_file(folder / "model.safetensors").items():
        for part, count in (("q_proj.", heads), ("k_proj.", groups)):
            if part in key and architecture in ("llama", "smollm3", "granite", "arcee"):
                split = value.reshape(count, 2, value.shape[0] // count // 2, *value.shape[1:])
                value = split.swapaxes(1, 2).reshape(value.shape)
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if without and name.endswith(without):
            continue
        chosen = gguf.GGMLQuantizationType.F32 if value.ndim == 1 else kind
        stored = quantize(value) if quantize and value.ndim == 2 else gguf.quants.quantize(value, chosen)
        writer.add_tensor(name, stored, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 300.0}}),
        ("llama", {"rope_parameters": LLAMA3}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                    "rope_theta": 50.0,
                }
            },
        ),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 12}),
        ("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": False}),
        ("granite", GRANITE),
        ("olmo2", {"head_dim": 12}),
        ("ernie4_5", {"use_bias": True}),
        ("seed_oss", {}),
        ("arcee", {}),
    ],
    ids=[
        *("llama", "tied", "linear", "llama3", "yarn", "qwen2", "qwen3"),
        *("smollm3", "granite", "olmo2", "ernie", "seed", "arcee"),
    ],
)
def test_the_same_model_as_the_folder(tmp_path: Path, model_type: str, config: dict[str, Any]) -> None:
    write_oracle(tmp_path / "hf", model_type, **config)
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", model_type)
    assert find_loader(tmp_path / "m.gguf").model() == find_loader(tmp_path / "hf").model()
    found, expected = read_model(tmp_path / "m.gguf"), read_model(tmp_path / "hf")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    tokens = random_tokens(9)
    assert torch.equal(found(tokens), expected(tokens))


@pytest.mark.parametrize(
    ("extra", "rope"),
    [
        ({"rope.scaling.factor": 2.5}, {"scaling": "linear", "factor": 2.5}),
        ({"rope.scale_linear": 2.5}, {"scaling": "linear", "factor": 2.5}),
        ({"rope.scaling.factor": 2.5, "rope.scaling.type": "none"}, {}),
        (
            {"rope.scaling.factor": 4.0, "rope.scaling.type": "yarn", "rope.scaling.attn_factor": 0.5},
            {
                "scaling": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "attention_factor": 0.5 * (1 + 0.1 * np.log(4)),
            },
        ),
    ],
)
def test_scaling_as_llama_cpp_has_it(sound: Path, tmp_path: Path, extra: dict[str, Any], rope: dict[str, Any]) -> None:
    extra = {f"llama.{key}": value for key, value in extra.items()}
    write_gguf(tmp_path / "m.gguf", sound.parent / "hf", "llama", extra=extra)
    model: Any = find_loader(tmp_path / "m.gguf").model()
    found = model["topology"]["layers"][0]["layers"][0]["layers"][1]["rope"]
    magnitude, expected = found.pop("attention_factor", 1.0), rope.pop("attention_factor", 1.0)
    assert magnitude == pytest.approx(expected)
    assert found == {"theta": 10000.0, **rope}


def test_keys_and_offsets_that_are_left_out(tmp_path: Path) -> None:
    """As many keys as queries, heads that share the width, and offsets of zero."""
    sizes = {"num_key_value_heads": 6, "attention_bias": True, "mlp_bias": True}
    write_oracle(tmp_path / "hf", "llama", **sizes)
    gone = ("head_count_kv", "key_length", "blk.1.attn_k.bias", "blk.0.ffn_up.bias", "attn_output.bias")
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama", without=gone)
    found, expected = read_model(tmp_path / "m.gguf"), read_model(tmp_path / "hf")
    zero = {"blocks.1.attention.k_bias", "blocks.0.mlp.up_bias"}
    for name, tensor in expected.state_dict().items():
        if name.endswith("o_bias"):
            assert name not in found.state_dict()
        else:
            assert torch.equal(found.state_dict()[name], tensor * 0 if name in zero else tensor), name


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_types(tmp_path: Path, kind: str) -> None:
    write_oracle(tmp_path / "hf", "llama", **Q4_1_SIZES)
    quantized = gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama", quantized)
    found, expected = read_model(tmp_path / "m.gguf"), read_model(tmp_path / "hf")
    for name, tensor in expected.state_dict().items():
        if tensor.ndim == 2:
            rounded = torch.from_numpy(
                gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), quantized), quantized)
            )
            assert torch.equal(found.state_dict()[name], rounded), name


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ4_NL", "Q4_1"])
def test_rows_a_few_at_a_time_are_rows_all_at_once(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """K-quants have no writer in the library; any bytes are sound blocks."""
    monkeypatch.setattr("caramba_plugins_llama.gguf_values._CHUNK", 1024)
    quantized = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[quantized]
    rows, columns = 7, 512
    raw = np.random.default_rng(0).integers(0, 100, (rows, columns // block * size), dtype=np.uint8)
    (tmp_path / "raw").write_bytes(b"123" + raw.tobytes())
    entry = GgufTensor(path=tmp_path / "raw", name="w", shape=(rows, columns), dtype=kind, offset=3, bytes=raw.size)
    ((_, found),) = values_of([entry])
    expected = torch.from_numpy(gguf.quants.dequantize(raw, quantized))
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_plain_values_that_are_no_numbers(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    """Rearranged (``q_proj``) or as the file holds them, of the model's type or another."""
    write_oracle(tmp_path / "hf", "llama")
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama", gguf.GGMLQuantizationType[kind])
    tensors = read_header(tmp_path / "m.gguf").tensors
    values = bytearray((tmp_path / "m.gguf").read_bytes())
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        nan = b"\0\0\xc0\x7f" if kind == "F32" else b"\xc0\x7f" if kind == "BF16" else b"\x00\x7e"
        end = tensors[name].offset + tensors[name].bytes
        values[end - len(nan) : end] = nan
    (tmp_path / "m.gguf").write_bytes(values)
    with pytest.raises(InputError, match=r"2 of its tensors") as caught:
        read_model(tmp_path / "m.gguf", dtype)
    assert "blk.0.attn_q.weight holds 1 NaN of 2304 values (fills model.blocks.0.attention.q_proj)" in str(caught.value)
    assert "blk.1.ffn_down.weight holds 1 NaN of 3840 values (fills model.blocks.1.mlp.down_proj)" in str(caught.value)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_spans(tmp_path: Path, model_type: str, kind: str) -> None:
    """Plain tensors whose rows stand as the graph has them have one; the kit compares values."""
    write_oracle(tmp_path / "hf", model_type, **Q4_1_SIZES)
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", model_type, gguf.GGMLQuantizationType[kind])
    for stored in GgufFile.open(tmp_path / "m.gguf").layout():
        rearranged = model_type == "llama" and stored.key.split(".")[-2] in ("attn_q", "attn_k")
        assert (stored.span is not None) == (stored.dtype in ("F32", "F16") and not rearranged), stored.key
    (tmp_path / "kit").mkdir()
    check_loader(GgufFile, tmp_path / "m.gguf", tmp_path / "kit")


def test_rows_of_heads() -> None:
    order = head_order(4, 4, adjacent=True)
    assert order == (0, 2, 1, 3)
    rows = torch.arange(8.0)  # two heads of two pairs: (0, 1), (2, 3) and (4, 5), (6, 7)
    assert rows_in_order(rows, order).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert rows_in_order(rows[:, None].expand(8, 3), order)[:, 1].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert head_order(4, 4, adjacent=False) is None
    assert head_order(10, 4, adjacent=False) == (0, 1, 4, 5, 6, 2, 3, 7, 8, 9)
    assert head_order(10, 4, adjacent=True) == (0, 2, 4, 5, 6, 1, 3, 7, 8, 9)
    for width, rotated, adjacent in ((10, 4, True), (10, 4, False), (8, 8, True)):
        order = head_order(width, rotated, adjacent=adjacent)
        assert order is not None
        rows = torch.randn(3 * width, 5)
        assert torch.equal(rows_in_order(rows_in_order(rows, order), inverse(order)), rows)


# ------------------------------------------------------------------------------------------------ damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_oracle(folder / "hf", "llama")
    write_gguf(folder / "m.gguf", folder / "hf", "llama", extra={"general.tags": ["a", "b"], "general.name": "m"})
    return folder / "m.gguf"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_headers_are_refused_or_read(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(sound.read_bytes())
    header = min(tensor.offset for tensor in read_header(sound).tensors.values())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    with contextlib.suppress(CarambaError):
        checkpoint = GgufFile.open(path)
        checkpoint.model()
        for tensor in checkpoint.header.tensors.values():
            assert tensor.offset + tensor.bytes <= path.stat().st_size


@pytest.mark.parametrize("length", [0, 3, 4, 23, 24, 100, 5000])
def test_cut_off(sound: Path, tmp_path: Path, length: int) -> None:
    (tmp_path / "cut.gguf").write_bytes(sound.read_bytes()[:length])
    with pytest.raises(InputError, match=r"is not a|too few|ends inside|more than the file can hold|file is empty"):
        find_loader(tmp_path / "cut.gguf")


def test_data_cut_off(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(sound.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"lies at byte (.|\n)*cut off"):
        find_loader(tmp_path / "cut.gguf")


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def header(version: int = 3, tensors: bytes = b"", count: int = 0, keys: int = 0, metadata: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, count, keys) + metadata + tensors + bytes(64)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(version=1), "it is version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), r"big-endian \(version 3\)"),
        (header(keys=2**62), "more than the file can hold"),
        (header(count=2**62), "more than the file can hold"),
        (header(keys=1, metadata=struct.pack("<Q", 2**63)), "characters, more than the file can hold"),
        (header(keys=1, metadata=string("k") + struct.pack("<I", 77)), "a value has type 77"),
        (header(keys=1, metadata=string("k") + struct.pack("<IIQ", 9, 4, 2**61)), "array items, more than"),
        (header(keys=1, metadata=string("k") + struct.pack("<IIQ", 9, 9, 1)), "items of type 9"),
        (header(keys=2, metadata=(string("k") + struct.pack("<IB", 0, 1)) * 2), "'k' stands twice"),
        (header(keys=1, metadata=struct.pack("<Q", 2) + b"\xff\xff" + struct.pack("<IB", 0, 1)), "not UTF-8"),
        (header(count=1, tensors=tensor("t", ())), "has 0 axes"),
        (header(count=1, tensors=tensor("t", (0,))), r"has shape \[0\]"),
        (header(count=1, tensors=tensor("t", (2**62, 2**62))), "lies at byte"),
        (
            header(count=1, tensors=tensor("t", (4,), kind=9)),
            "a sound GGUF file of a type that is not read: 't' is a Q8_1 tensor",
        ),
        (header(count=1, tensors=tensor("t", (5,), kind=2)), r"of type Q4_0 has shape \[5\]"),
        (header(count=1, tensors=tensor("t", (4,), offset=4)), "lies at byte"),
        (header(count=2, tensors=tensor("t", (2,)) * 2), "'t' stands twice"),
        (header(count=2, tensors=tensor("t", (2,)) + tensor("u", (2,))), "overlap"),
        (header(keys=1, metadata=string("general.alignment") + struct.pack("<II", 4, 0)), "general.alignment is 0"),
    ],
)
def test_lies(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "lie.gguf").write_bytes(content)
    with pytest.raises(InputError, match=message):
        find_loader(tmp_path / "lie.gguf")


def test_two_loaders_for_one_file_are_an_error(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HuggingFaceFolder, "accepts", lambda path: True)
    with pytest.raises(PluginError, match=r"recognized by several loaders: caramba-plugins-llama:gguf, .*:huggingface"):
        find_loader(sound)


def test_other_architectures(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        InputError, match=r"architecture 'bert', which is not of the Llama family\n  expected: llama, qwen2"
    ):
        find_loader(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"llama.rope.dimension_count": 4}, "4 of 8 dimensions of a head are rotated"),
        ({"split.count": 3}, "one part of 3, and its name does not tell"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope's, which change with the length"),
    ],
)
def test_what_cannot_be_expressed(sound: Path, tmp_path: Path, extra: dict[str, Any], message: str) -> None:
    write_gguf(tmp_path / "m.gguf", sound.parent / "hf", "llama", extra=extra)
    with pytest.raises(InputError, match=message):
        find_loader(tmp_path / "m.gguf").model()


def test_rotary_factors_of_another_kind(tmp_path: Path) -> None:
    """They are read as a list, as the file does not say what made them."""
    write_oracle(tmp_path / "hf", "llama", rope_parameters={**LLAMA3, "high_freq_factor": 200.0})
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama")
    tokens = random_tokens(48)
    found, expected = read_model(tmp_path / "m.gguf"), read_model(tmp_path / "hf")
    attention: Any = next(iter(found.graph.attentions().values())).config
    assert attention.rope.scaling == "listed"
    torch.testing.assert_close(found(tokens), expected(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_rotary_factors_that_are_none(tmp_path: Path, factor: float) -> None:
    write_oracle(tmp_path / "hf", "llama")
    factors = {"rope_freqs.weight": np.array([1.0, factor, 2.0, 3.0], dtype=np.float32)}
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama", tensors=factors)
    with pytest.raises(InputError, match=r"rope_freqs\.weight holds a factor that is no positive number"):
        find_loader(tmp_path / "m.gguf").model()


def test_values_that_are_no_numbers(sound: Path, tmp_path: Path) -> None:
    content = bytearray(sound.read_bytes())
    at = read_header(sound).tensors["blk.1.ffn_up.weight"].offset
    content[at : at + 4] = struct.pack("<f", float("nan"))
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(
        InputError, match=r"blk\.1\.ffn_up\.weight holds 1 NaN of 3840 values \(fills model\.blocks\.1\.mlp\.up_proj\)"
    ):
        read_model(tmp_path / "m.gguf")
