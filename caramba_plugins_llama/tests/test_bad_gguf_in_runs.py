"""Runs whose teacher is a GGUF file that caramba cannot read: one report, exit code 2, nothing written."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from caramba_plugins_llama.gguf_header import read_header

from .conftest import write_oracle
from .measuring import caramba, measure, refused
from .test_gguf import write_gguf


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small Llama, as the library writes it."""
    folder = tmp_path_factory.mktemp("gguf")
    write_oracle(folder / "hf", "llama")
    write_gguf(folder / "m.gguf", folder / "hf", "llama", extra={"general.name": "m"})
    return (folder / "m.gguf").read_bytes()


def test_a_sound_one_runs(sound: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(sound)
    assert measure(tmp_path, "{source: m.gguf}") == 0


BAD_TOKENIZERS: dict[str, tuple[str, str, str]] = {
    "a rule that is not known": ("gpt2", "viking", "splits words by the rule 'viking', which is not known"),
    "a kind that is not known": ("rwkv", "", "its tokenizer is of kind 'rwkv'"),
}


@pytest.mark.parametrize("name", BAD_TOKENIZERS)
def test_a_tokenizer_that_cannot_be_read(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Token arrays need none: the run says so once, and goes on.  A text, or a prompt, needs one."""
    kind, rule, words = BAD_TOKENIZERS[name]
    write_oracle(tmp_path / "hf", "llama")
    tokens = [f"t{n}" for n in range(97)]
    extra = {"tokenizer.ggml.model": kind, "tokenizer.ggml.pre": rule, "tokenizer.ggml.tokens": tokens}
    write_gguf(tmp_path / "m.gguf", tmp_path / "hf", "llama", extra=extra)
    assert measure(tmp_path, "{source: m.gguf}") == 0
    assert len(caplog.messages) == 1
    assert "warning: the teacher's tokenizer is not used, token arrays alone can be" in caplog.text
    assert words in caplog.text
    capsys.readouterr()
    (tmp_path / "text.txt").write_text("text")
    text = (tmp_path / "manifest.yml").read_text().replace("heldout.npy", "text.txt")
    (tmp_path / "manifest.yml").write_text(text)
    assert caramba("run", str(tmp_path / "manifest.yml"), "--output", str(tmp_path / "more")) == 2
    assert "text.txt is a text, and there is no tokenizer to encode it with" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["mamba", "bert", "gpt2", "qwen2moe", "t5encoder"])
def test_other_architectures(tmp_path: Path, architecture: str, capsys: pytest.CaptureFixture[str]) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
    writer.add_block_count(2)
    writer.add_embedding_length(48)
    writer.add_tensor("token_embd.weight", np.zeros((97, 48), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    told = refused(tmp_path, "{source: m.gguf}", f"m.gguf holds a model of architecture '{architecture}'", capsys)
    assert "not of the Llama family" in told
    assert "= expected: llama, qwen2" in told


def cut_at(share: float) -> Callable[[bytes, int], bytes]:
    """Only this share of the header."""
    return lambda content, start: content[: int(share * start)]


def with_start(start: bytes) -> Callable[[bytes, int], bytes]:
    return lambda content, _: start + content[len(start) :]


DAMAGE: dict[str, tuple[Callable[[bytes, int], bytes], tuple[str, ...]]] = {
    "nothing": (lambda content, start: b"", ("the file is empty",)),
    "magic alone": (lambda content, start: content[:4], ("4 bytes, too few for a GGUF header",)),
    "cut in the metadata": (cut_at(0.2), ("is not a sound GGUF file", "fetch the file again")),
    "cut in the tensor table": (cut_at(0.9), ("the file ends inside its header", "fetch the file again")),
    "no data": (lambda content, start: content[:start], ("lies at byte", "it is cut off", "fetch the file again")),
    "half of the data": (
        lambda content, start: content[: (start + len(content)) // 2],
        ("lies at byte", "it is cut off", "fetch the file again"),
    ),
    "last byte missing": (lambda content, start: content[:-1], ("lies at byte", "it is cut off")),
    "magic of its forerunner": (with_start(b"ggjt"), ("is not a checkpoint that an installed plugin can read",)),
    "magic backwards": (with_start(b"FUGG"), ("is not a checkpoint that an installed plugin can read",)),
    "version 1": (with_start(b"GGUF" + struct.pack("<I", 1)), ("it is version 1", "version 2 or 3")),
    "version 4": (with_start(b"GGUF" + struct.pack("<I", 4)), ("it is version 4", "version 2 or 3")),
    "big-endian": (with_start(b"GGUF" + struct.pack(">I", 3)), ("it is big-endian (version 3)", "version 2 or 3")),
    "web page": (lambda content, start: b"<!DOCTYPE html>" + content, ("it is a web page",)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files(sound: bytes, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, words = DAMAGE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(sound)
    path.write_bytes(damage(sound, min(tensor.offset for tensor in read_header(path).tensors.values())))
    told = refused(tmp_path, "{source: m.gguf}", "m.gguf", capsys)
    assert all(word in told for word in words), told


def test_values_that_are_no_numbers(sound: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Found only when the data itself is read, and still before anything is written."""
    path = tmp_path / "m.gguf"
    path.write_bytes(sound)
    at = read_header(path).tensors["blk.1.ffn_up.weight"].offset
    path.write_bytes(sound[:at] + struct.pack("<f", float("inf")) + sound[at + 4 :])
    refused(tmp_path, "{source: m.gguf}", "blk.1.ffn_up.weight holds 1 infinite", capsys)
