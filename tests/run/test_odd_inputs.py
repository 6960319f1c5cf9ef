"""Files that are no files, and ids that end a text and that no model gives: refused in a sentence, without waiting."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import tokenizers
import torch
from caramba_plugins_standard.generation import generate

import caramba as caramba_of_python
from caramba_core.cli import main
from caramba_core.errors import InputError

from .models import tiny_model
from .workspace import make_workspace

SAY = "      - {id: say, mode: generate, prompt: a b, max_new_tokens: 3}\n"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


KINDS: dict[str, Callable[[Path], None]] = {"a pipe": pipe, "a socket": listening, "a device": device}
ALL = {**KINDS, "a folder": Path.mkdir}


def put(kind: str, path: Path) -> None:
    """Something of this kind in the place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    ALL[kind](path)


@pytest.fixture(autouse=True)
def _no_wait() -> Iterator[None]:
    """A test that waits for what never comes, or reads what never ends, fails."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a talking teacher, a finished conversion, and a training that stopped at step 2 of 6."""
    folder = tmp_path_factory.mktemp("made")
    manifest = make_workspace(folder)
    talk(folder)
    assert caramba("run", manifest, "--run", "convert", "--output", folder / "runs") == 0
    for _ in range(2):
        assert caramba("run", manifest, "--minutes", "0", "--resume", "--output", folder / "runs") == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def refused(capsys: pytest.CaptureFixture[str], words: str, *arguments: str) -> None:
    capsys.readouterr()
    assert caramba(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "internal" not in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["train.npy", "heldout.npy", "train.npy.json", "text.txt", "lines.jsonl"])
def test_data_that_is_no_file(copy: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(kind, copy / name)
    named = () if name.endswith((".npy", ".json")) else ("--set", f"groups.0.data.train={{type: text, path: {name}}}")
    refused(capsys, f"{name} is not a file", "run", "manifest.yml", "--dry-run", "--output", "others", *named)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["text.txt", "lines.jsonl"])
def test_texts_that_are_no_files(copy: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(kind, copy / name)
    refused(capsys, f"{name} is not a file", "data", "prepare", name, "-o", "out.npy", "--tokenizer", "teacher")
    assert not (copy / "out.npy").exists()


RUN = Path("runs/small/half/finetune")
FOLDERS = ("", "checkpoints", "evaluation")
RUN_FILES = ("lock", "manifest.yml", "metrics.jsonl", "plan.json", "report.json", "state.json", "summary.json")
CHECKPOINT_FILES = ("state.json", "model.safetensors", "optimizer.safetensors", "random.safetensors")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", RUN_FILES)
def test_a_file_of_a_run_that_is_no_file(copy: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is computed; it is still there behind."""
    before = {path for path in (copy / RUN).rglob("*") if path.name != name}
    put(kind, RUN / name)
    refused(capsys, f"{RUN / name} is not a file", "run", "manifest.yml", "--resume")
    assert {path for path in (copy / RUN).rglob("*") if path.name != name} == before
    assert (RUN / name).exists()


@pytest.mark.parametrize("kind", [*KINDS, "a file"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_a_run_that_is_none(copy: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "a file":
        shutil.rmtree(RUN / name)
        (RUN / name).write_text("x")
    else:
        put(kind, RUN / name)
    refused(capsys, str(RUN / name), "run", "manifest.yml", "--resume")
    assert (RUN / name).exists()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_file_of_a_checkpoint_that_is_none(
    copy: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = max((RUN / "checkpoints").iterdir())
    put(kind, newest / name)
    refused(capsys, f"{newest / name} is not a file", "run", "manifest.yml", "--resume")
    if name in ("state.json", "model.safetensors"):
        refused(capsys, f"{newest / name} is not a file", "export", str(RUN), "-o", "out")
        assert not Path("out").exists()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", ["state.json", "summary.json", "manifest.yml"])
def test_runs_that_are_opened(copy: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = RUN.with_name("convert")
    put(kind, run / name)
    words = "manifest.yml: error: this is" if name == "manifest.yml" else f"{run / name} is not a file"
    refused(capsys, words, "export", str(run), "-o", "out")
    refused(capsys, words, "generate", str(run), "a b", "--max-new-tokens", "1")
    found = {one.run: one.status for one in caramba_of_python.runs("runs")}
    assert found == {"finetune": "interrupted", "convert": "done" if name == "manifest.yml" else "damaged"}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("special_tokens_map.json", "added_tokens.json", "model.safetensors", "model.safetensors.index.json"),
    ],
)
def test_a_file_of_a_checkpoint_of_others(copy: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name.endswith("index.json"):
        (copy / "teacher" / "model.safetensors").unlink()
    put(kind, copy / "teacher" / name)
    words = "leads out of" if kind == "a device" else "is not a file"
    refused(capsys, words, "export", "teacher", "-o", "out")
    refused(capsys, words, "generate", "teacher", "a b", "--max-new-tokens", "1")
    if name in ("config.json", "model.safetensors"):
        refused(capsys, words, "compile", "manifest.yml", "--set", "groups.0.teacher.source=teacher")


def test_a_line_of_metrics_that_is_damaged(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A last one that is cut off is what a process left that died; another one is not dropped without a word."""
    file = RUN / "metrics.jsonl"
    text = file.read_text()
    for damage in (b"\xff\n", b"[" * 100_000 + b"\n", b"[]\n", b'{"step": "x"}\n', b"\n"):
        file.write_bytes(damage + text.encode())
        refused(capsys, f"{file}:1 is damaged", "run", "manifest.yml", "--resume")
    file.write_text(text + text[:7])
    assert caramba("run", "manifest.yml", "--resume") == 0
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [*range(1, 7)]


@pytest.fixture
def talking(tmp_path: Path) -> Path:
    """A workspace whose teacher has a tokenizer of five tokens, a text and a run that generates."""
    manifest = make_workspace(tmp_path)
    talk(tmp_path)
    manifest.write_text(manifest.read_text() + SAY)
    return manifest


def talk(folder: Path) -> None:
    """Give the teacher of a workspace a tokenizer, and the workspace a text."""
    words = {word: id_ for id_, word in enumerate(["<unk>", "</s>", "a", "b", "c"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "teacher" / "tokenizer.json"))
    (folder / "text.txt").write_text("a b c\n" * 3000)


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
