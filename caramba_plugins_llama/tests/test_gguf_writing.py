"""Models written as GGUF files: read back by caramba, run by llama.cpp, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from caramba_plugins_llama.export import export, formats
from caramba_plugins_llama.exporting import ExportError
from caramba_plugins_llama.gguf_header import read_file
from caramba_plugins_llama.gguf_tokenizer import rebuild
from caramba_plugins_standard.loading import find_loader

from caramba_core.cli import main
from caramba_core.errors import InputError, VerificationFailed

from .conftest import random_tokens, read_model, write_oracle
from .llama_cpp import ends_of, logits_of, token_ids_of
from .runs import decoder, make_run
from .test_export import GQA, LISTED, LLAMA3, left_in
from .test_tokenizers import TEXT, metadata, trained

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", decoder(GQA)),
    "tied": ("llama", decoder(GQA, tied=True)),
    "a head each": ("llama", decoder({"type": "mha", "n_heads": 3, "head_dim": 8, "rope": {"theta": 500.0}})),
    "offsets": ("llama", decoder({**GQA, "qkv_bias": True, "o_bias": True}, mlp_bias=True)),
    "output offsets": ("llama", decoder({**GQA, "o_bias": True})),
    "linear": ("llama", decoder({**GQA, "rope": {"theta": 300.0, "scaling": "linear", "factor": 2.5}})),
    "llama3": ("llama", decoder({**GQA, "rope": LLAMA3})),
    "listed": ("llama", decoder({**GQA, "rope": LISTED})),
    "yarn": (
        "llama",
        decoder(
            {**GQA, "rope": {"theta": 50.0, "scaling": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}
        ),
    ),
    "qwen2": ("qwen2", decoder({**GQA, "qkv_bias": True, "n_heads": 3, "n_kv_heads": 1})),
    "qwen2 with wide heads": ("llama", decoder({**GQA, "qkv_bias": True})),
    "qwen2 with factors": ("llama", decoder({**GQA, "qkv_bias": True, "n_heads": 3, "n_kv_heads": 1, "rope": LLAMA3})),
    "qwen3": ("qwen3", decoder({**GQA, "qk_norm_eps": 1e-5})),
}


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    architecture, model = MODELS[name]
    mine = make_run(tmp_path / "run", model)
    done = export(tmp_path / "run", tmp_path / "out.gguf", form="gguf")
    assert (done.form, done.exporter, done.dtype, done.files) == ("gguf", "standard", "float32", ("out.gguf",))
    tokens = random_tokens(40, batch=1, vocabulary=61)
    torch.testing.assert_close(read_model(done.path)(tokens), mine(tokens), rtol=0, atol=1e-5)
    assert read_file(done.path).metadata["general.architecture"] == architecture
    expected = logits_of(done.path, tokens[0].tolist())
    assert not isinstance(expected, str), f"llama.cpp does not read it: {expected}"
    torch.testing.assert_close(mine(tokens)[0], torch.tensor(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "tied", "offsets", "llama3", "qwen2", "qwen3"])
def test_the_way_through_both_formats(tmp_path: Path, name: str) -> None:
    """A run, a GGUF file of it, a folder of that, a GGUF file of that: the same values everywhere."""
    mine = make_run(tmp_path / "run", MODELS[name][1])
    export(tmp_path / "run", tmp_path / "one.gguf", form="gguf")
    export(tmp_path / "one.gguf", tmp_path / "folder")
    export(tmp_path / "folder", tmp_path / "two.gguf", form="gguf")
    for path in ("one.gguf", "folder", "two.gguf"):
        again = read_model(tmp_path / path).state_dict()
        assert all(torch.equal(tensor, again[key]) for key, tensor in mine.state_dict().items()), path
    one, two = (read_file(tmp_path / name) for name in ("one.gguf", "two.gguf"))
    assert one.tensors.keys() == two.tensors.keys()
    named = {key for key in one.metadata if not key.startswith("general.")}
    assert {key: one.metadata[key] for key in named} == {key: two.metadata.get(key) for key in named}


@pytest.mark.parametrize(("quant", "kind"), [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")])
def test_types_of_matrices(tmp_path: Path, quant: str, kind: str) -> None:
    model = decoder({"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "rope": {"theta": 500.0}})
    model["embedder"]["d_model"] = 64
    model["topology"]["layers"][0]["layers"][1]["layers"][1]["d_ff"] = 96
    mine = make_run(tmp_path / "run", model)
    done = export(tmp_path / "run", tmp_path / "out.gguf", form="gguf", quant=quant)
    assert done.dtype == quant
    types = {len(one.shape): one.dtype for one in read_file(done.path).tensors.values()}
    assert types == {1: "F32", 2: kind}
    for name, values in read_model(done.path).state_dict().items():
        expected = mine.state_dict()[name]
        allowed = {"f32": 0.0, "f16": 1e-3, "bf16": 8e-3, "q8_0": 1e-2}[quant] * expected.abs().max()
        torch.testing.assert_close(values, expected, rtol=0, atol=float(allowed))


def test_rows_that_are_no_whole_blocks(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    with pytest.raises(ExportError, match=r"rows of 24 values, and q8_0 has blocks of 32(.|\n)*--quant bf16"):
        export(tmp_path / "run", tmp_path / "out.gguf", form="gguf", quant="q8_0")
    assert left_in(tmp_path) == {"run"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a window": (decoder({**GQA, "window": 7}), "its layers see a window, and llama.cpp has none for llama"),
    "dynamic": (
        decoder(
            {
                **GQA,
                "rope": {"theta": 300.0, "scaling": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16},
            }
        ),
        "llama.cpp has no dynamic scaling",
    ),
    "qwen3 offsets": (
        decoder({**GQA, "qk_norm_eps": 1e-5, "qkv_bias": True, "o_bias": True}),
        "no offsets in the attentions of qwen3",
    ),
    "qwen3 factors": (decoder({**GQA, "qk_norm_eps": 1e-5, "rope": LLAMA3}), "llama.cpp has no place for rotary"),
    "a factor of cosines": (
        decoder({**GQA, "rope": {**LISTED, "attention_factor": 0.7}}),
        "its rope has attention_factor 0.7",
    ),
    "yarn": (
        decoder(
            {
                **GQA,
                "rope": {
                    "theta": 50.0,
                    "scaling": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                    "beta_fast": 16.0,
                },
            }
        ),
        "llama.cpp's yarn has beta_fast 32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_has_no_words_for(tmp_path: Path, name: str) -> None:
    model, reason = REFUSED[name]
    make_run(tmp_path / "run", model)
    with pytest.raises(InputError, match=rf"cannot write this model as gguf|as gguf:(.|\n)*{reason}") as caught:
        export(tmp_path / "run", tmp_path / "out.gguf", form="gguf")
    assert reason in str(caught.value)
    assert left_in(tmp_path) == {"run"}


# ------------------------------------------------------------------------------------------------ tokenizers


def rows_of(tokenizer: Any) -> int:
    return int(tokenizer.get_vocab_size(with_added_tokens=True))


@pytest.mark.parametrize("rule", ["smollm", "llama-bpe", "qwen2", "gpt-2"])
def test_a_folder_s_tokenizer_cuts_texts_in_llama_cpp_as_it_did(tmp_path: Path, rule: str) -> None:
    tokenizer = trained(rule)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    rows = rows_of(tokenizer) + 3
    write_oracle(tmp_path / "hf", "llama", vocab_size=rows)
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "chat_template": "{{ messages }}"}
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(settings))
    done = export(tmp_path / "hf", tmp_path / "out.gguf", form="gguf")
    written = read_file(done.path).metadata
    assert len(written["tokenizer.ggml.tokens"]) == rows
    assert written["tokenizer.ggml.tokens"][-1] == f"[PAD{rows - 1}]"
    assert written["tokenizer.chat_template"] == "{{ messages }}"
    ours, theirs = find_loader(tmp_path / "hf").tokenizer(), find_loader(done.path).tokenizer()
    assert ours is not None and theirs is not None
    assert ours.identity == theirs.identity
    texts = [TEXT, "<|im_start|>user\nHow are you?<|im_end|>", "  12345 isn't\t\tÜber"]
    expected = [ours.encode(text, special_tokens=True) for text in texts]
    assert [theirs.encode(text, special_tokens=True) for text in texts] == expected
    assert token_ids_of(done.path, texts) == expected
    ids, ends = ends_of(done.path, "word")  # type: ignore[misc]
    assert ids == [tokenizer.token_to_id("<|im_start|>"), *ours.encode("word")]
    assert tokenizer.token_to_id("<|im_end|>") in ends


def test_the_tokenizer_of_a_gguf_file_comes_back_as_it_was(tmp_path: Path) -> None:
    said = metadata(trained("smollm"), "smollm")
    rows = len(said["tokenizer.ggml.tokens"])
    write_oracle(tmp_path / "hf", "llama", vocab_size=rows)
    export(tmp_path / "hf", tmp_path / "plain.gguf", form="gguf")
    reader, teacher = gguf.GGUFReader(tmp_path / "plain.gguf"), tmp_path / "teacher.gguf"
    writer = gguf.GGUFWriter(teacher, "llama")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "tokenizer.", "general.architecture")):
            writer.add_key_value(key, field.contents(), field.types[0])
    for key, value in {**said, "tokenizer.chat_template": "{{ messages }}"}.items():
        kind = gguf.GGUFValueType.get_type(value)
        writer.add_key_value(key, value, gguf.GGUFValueType.UINT32 if type(value) is int else kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    make_run(tmp_path / "run", decoder(GQA, vocabulary=rows), teacher=str(teacher))
    done = export(tmp_path / "run", tmp_path / "out.gguf", form="gguf")
    kept = {key: value for key, value in read_file(done.path).metadata.items() if key.startswith("tokenizer.")}
    assert kept == {key: value for key, value in read_file(teacher).metadata.items() if key.startswith("tokenizer.")}


def test_a_tokenizer_that_llama_cpp_has_no_name_for(tmp_path: Path) -> None:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = trained("smollm")
    split = pre_tokenizers.Split(Regex("[aeiou]"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    write_oracle(tmp_path / "hf", "llama", vocab_size=rows_of(tokenizer))
    tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
    with pytest.raises(ExportError, match=r"cuts texts by rules that llama.cpp has no name for(.|\n)*--origin"):
        export(tmp_path / "hf", tmp_path / "out.gguf", form="gguf")
    assert left_in(tmp_path) == {"hf"}


# ------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "out.gguf", "--as", "onnx"], "there is no format 'onnx'"),
        (["-o", "out", "--quant", "f16"], "--quant is the type of a GGUF file's matrices"),
        (["-o", "out.gguf", "--as", "gguf", "--quant", "f16", "--dtype", "float16"], "--quant and --dtype both name"),
        (["-o", "out", "--as", "gguf"], "a name that ends in .gguf"),
        (["-o", "out.gguf"], "a folder, whose name does not end in .gguf"),
        (["-o", "out", "--as", "caramba"], "none of its attentions is dba"),
        (["-o", "out", "--check", "text"], "--check needs a tokenizer"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    options[1] = str(tmp_path / options[1])
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "run"), *options])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert left_in(tmp_path) == {"run"}


def test_formats() -> None:
    assert {"llama", "caramba", "gguf"} <= {*formats()}


@pytest.mark.parametrize("form", ["llama", "gguf"])
def test_the_check_compares_logits(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    if form == "gguf":
        pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")
    rows = rows_of(trained("smollm"))
    write_oracle(tmp_path / "hf", "llama", vocab_size=rows)
    trained("smollm").save(str(tmp_path / "hf" / "tokenizer.json"))
    make_run(tmp_path / "run", decoder(GQA, vocabulary=rows), teacher=str(tmp_path / "hf"))
    output = tmp_path / ("out.gguf" if form == "gguf" else "out")
    done = export(tmp_path / "run", output, form=form, check=TEXT)
    assert done.checked is not None
    assert ("transformers" if form == "llama" else "llama.cpp") in done.checked
    with pytest.raises(InputError, match="at least two tokens"):
        export(tmp_path / "run", tmp_path / f"again.{form}" if form == "gguf" else tmp_path / "b", form=form, check="")


def test_a_model_that_comes_out_another_one_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caramba_plugins_llama import standard_exporter

    rows = rows_of(trained("smollm"))
    write_oracle(tmp_path / "hf", "llama", vocab_size=rows)
    trained("smollm").save(str(tmp_path / "hf" / "tokenizer.json"))
    monkeypatch.setattr(standard_exporter, "difference", lambda *_: None)
    model = decoder({**GQA, "scale": 0.9}, vocabulary=rows)
    make_run(tmp_path / "run", model, teacher=str(tmp_path / "hf"))
    with pytest.raises(VerificationFailed, match="the exported model is another one: "):
        export(tmp_path / "run", tmp_path / "out", check=TEXT)
    assert left_in(tmp_path) == {"run", "hf"}


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentence_piece_tokenizer_of_a_folder(tmp_path: Path, prefix: bool) -> None:
    """Ranks of merges become scores, which say the same."""
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{byte:02X}>", 6) for byte in range(256))]
    words = ["▁", "t", "h", "e", "n", "he", "th", "the", "▁the", "en", "then", "▁then"]
    scores = [-100.0, -99.0, -98.0, -97.0, -96.0, -5.0, -1.0, -2.0, -3.0, -9.0, -4.0, -3.5]
    said = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.tokens": [*(token for token, _ in pieces), *words],
        "tokenizer.ggml.token_type": [*(kind for _, kind in pieces), *(1 for _ in words)],
        "tokenizer.ggml.scores": [0.0] * len(pieces) + scores,
    }
    write_oracle(tmp_path / "hf", "llama", vocab_size=len(pieces) + len(words))
    rebuild(said, tmp_path).save(str(tmp_path / "hf" / "tokenizer.json"))
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    done = export(tmp_path / "hf", tmp_path / "out.gguf", form="gguf")
    ours, theirs = find_loader(tmp_path / "hf").tokenizer(), find_loader(done.path).tokenizer()
    assert ours is not None and theirs is not None
    assert ours.identity == theirs.identity
    texts = ["the then", "hen", "thé", "then the  hen"]
    assert token_ids_of(done.path, texts) == [ours.encode(text) for text in texts]
