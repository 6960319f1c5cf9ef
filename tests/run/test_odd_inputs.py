"""Files that are no files, and ids that end a text and that no model gives: refused in a sentence, without waiting."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from caramba_plugins_standard.generation import generate

from caramba_core.cli import main
from caramba_core.errors import InputError

from .models import tiny_model
from .workspace import make_workspace

SAY = "      - {id: say, mode: generate, prompt: a b, max_new_tokens: 3}\n"


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def listening(path: Path) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], None]] = {"a pipe": pipe, "a socket": listening, "a device": device}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["train.npy", "heldout.npy", "train.npy.json", "text.txt", "lines.jsonl"])
def test_data_that_is_no_file(tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)
    KINDS[kind](tmp_path / name)
    named = () if name.endswith((".npy", ".json")) else ("--set", f"groups.0.data.train={{type: text, path: {name}}}")
    refused(tmp_path, name, "run", "manifest.yml", "--dry-run", *named)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["text.txt", "lines.jsonl"])
def test_texts_that_are_no_files(tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_workspace(tmp_path)
    KINDS[kind](tmp_path / name)
    refused(tmp_path, name, "data", "prepare", name, "-o", "out.npy", "--tokenizer", "teacher")
    assert not (tmp_path / "out.npy").exists()


def refused(folder: Path, name: str, *arguments: str) -> None:
    """In another process, which ends instead of waiting for what never comes."""
    command = [sys.executable, "-m", "caramba_core", *arguments]
    ran = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=300, stdin=subprocess.DEVNULL
    )
    assert ran.returncode == 2
    assert f"{name} is not a file" in ran.stderr
    assert "internal" not in ran.stderr


@pytest.fixture
def talking(tmp_path: Path) -> Path:
    """A workspace whose teacher has a tokenizer of five tokens, a text and a run that generates."""
    manifest = make_workspace(tmp_path)
    words = {word: id_ for id_, word in enumerate(["<unk>", "</s>", "a", "b", "c"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "teacher" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("a b c\n" * 3000)
    manifest.write_text(manifest.read_text() + SAY)
    return manifest


def ends(manifest: Path, name: str, eos: Any) -> None:
    file = manifest.parent / "teacher" / name
    settings = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**settings, "eos_token_id": eos}))


def caramba(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("eos", [64, 10**6, 10**30, [1, 64]])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_end_beyond_the_vocabulary(
    talking: Path, capsys: pytest.CaptureFixture[str], name: str, eos: int | list[int]
) -> None:
    ends(talking, name, eos)
    runs = ("--dry-run", "--output", talking.parent / "runs")
    assert caramba("run", talking, *runs) == 2
    beyond = eos if isinstance(eos, int) else 64
    said = capsys.readouterr().err
    assert f"the tokenizer ends a text with token {beyond}, beyond the model's vocabulary" in said
    if isinstance(eos, int):  # a list's first separates texts
        assert caramba("run", talking, *runs, "--set", "groups.0.data.train=text.txt", "--run", "convert") == 2
        out = talking.parent / "out.npy"
        made = ("data", "prepare", talking.parent / "text.txt", "-o", out, "--tokenizer", talking.parent / "teacher")
        assert caramba(*made) == 2
        assert f"token {eos}, which its vocabulary does not have" in capsys.readouterr().err
        assert not out.exists()


def test_an_end_of_the_vocabulary(talking: Path) -> None:
    ends(talking, "config.json", 63)  # which the tokenizer does not have, and the model may give
    assert caramba("run", talking, "--dry-run", "--output", talking.parent / "runs") == 0


def test_ends_given_from_python() -> None:
    model = tiny_model(0)
    with pytest.raises(InputError, match="beyond the model's vocabulary"):
        generate(model, torch.tensor([[1, 2]]), 2, stops={3, 10**30})
