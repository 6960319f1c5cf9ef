"""Runs whose teacher is empty or may not be read: one report, exit code 2, nothing written."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .binding import permissions_bind
from .measuring import caramba, measure, only_report, refused
from .runs import decoder, make_run
from .test_gguf import write_gguf

Capture = pytest.CaptureFixture[str]


def test_an_empty_folder(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model").mkdir()
    told = refused(tmp_path, "{source: model}", "model is not a checkpoint", capsys)
    assert "the folder is empty" in told


def test_a_folder_of_other_things(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model" / "model.safetensors").mkdir(parents=True)
    (tmp_path / "model" / "notes.txt").write_text("mine")
    told = refused(tmp_path, "{source: model}", "model is not a checkpoint that an installed plugin can read", capsys)
    assert "empty" not in told
    for name in ("state.json", "manifest.yml"):
        (tmp_path / "model" / name).write_text("{}")
    told = refused(tmp_path, "{source: model}", "it is a run of caramba (caramba export makes a checkpoint", capsys)


@pytest.fixture
def teachers(folder: Path, tmp_path: Path) -> Path:
    """The folder ``model``, the file ``m.gguf`` and the same model in ``below/model``."""
    write_gguf(tmp_path / "m.gguf", folder, "llama")
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    shutil.copytree(folder, tmp_path / "below" / "model")
    return tmp_path


UNREADABLE: dict[str, tuple[str, int, str, str]] = {
    "folder": ("model", 0o000, "model", "model cannot be read: Permission denied"),
    "folder that may be listed": ("model", 0o400, "model", "cannot be read: Permission denied"),
    "folder that may be passed": ("model", 0o100, "model", "model cannot be read: Permission denied"),
    "folder above": ("below", 0o000, "below/model", "below/model cannot be read: Permission denied"),
    "configuration": ("model/config.json", 0o000, "model", "config.json cannot be read: Permission denied"),
    "weights": ("model/model.safetensors", 0o000, "model", "model.safetensors cannot be read: Permission denied"),
    "file": ("model/model.safetensors", 0o200, "model/model.safetensors", "cannot be read: Permission denied"),
    "pickle": ("model/pytorch_model.bin", 0o000, "model/pytorch_model.bin", "cannot be read: Permission denied"),
    "GGUF": ("m.gguf", 0o000, "m.gguf", "m.gguf cannot be read: Permission denied"),
    "hash": ("m.gguf", 0o000, f"m.gguf, sha256: '{'0a' * 32}'", "m.gguf cannot be read: Permission denied"),
}
"""What is closed, to which mode; the source; what is said."""


@pytest.mark.parametrize("name", UNREADABLE)
def test_without_permission(teachers: Path, name: str, capsys: Capture) -> None:
    closed, mode, source, words = UNREADABLE[name]
    before = (teachers / closed).stat().st_mode
    (teachers / closed).chmod(mode)
    try:
        with permissions_bind():
            refused(teachers, f"{{source: {source}}}", words, capsys)
    finally:
        (teachers / closed).chmod(before)


CLOSED: dict[str, tuple[str, str, str]] = {
    "folder": ("iterdir", "model", "model"),
    "configuration": ("read_bytes", "model/config.json", "model"),
    "weights": ("open", "model/model.safetensors", "model"),
    "pickle": ("open", "model/pytorch_model.bin", "model/pytorch_model.bin"),
    "GGUF": ("open", "m.gguf", "m.gguf"),
}
"""The call that the system refuses, and for which file; the source."""


@pytest.mark.parametrize("name", CLOSED)
def test_refused_by_the_system(teachers: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The same where no permissions bind."""
    call, closed, source = CLOSED[name]
    allowed: Callable[..., Any] = getattr(Path, call)

    def asked(path: Path, *arguments: Any, **named: Any) -> Any:
        if path == teachers / closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, asked)
        told = refused(teachers, f"{{source: {source}}}", "cannot be read: Permission denied", capsys)
    assert f"{teachers / closed} cannot be read" in told


# ------------------------------------------------------------------------------------------------ beside the teacher


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o500])
def test_a_folder_for_runs_that_is_closed(teachers: Path, mode: int, capsys: Capture) -> None:
    (teachers / "closed").mkdir(mode=mode)
    with permissions_bind():
        assert measure(teachers, "{source: model}", "closed/runs") == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == 1
    assert f"error: {teachers / 'closed' / 'runs'}" in told
    assert "cannot be used: Permission denied" in told
    assert "Traceback" not in told
    assert list((teachers / "closed").iterdir()) == []


@pytest.mark.parametrize("closed", ["run", "run/manifest.yml", "model/config.json", "model/generation_config.json"])
def test_exports_of_what_may_not_be_read(teachers: Path, closed: str, capsys: Capture) -> None:
    attention = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": {"theta": 500.0}}
    make_run(teachers / "run", decoder(attention), teacher=str(teachers / "model"))
    before = {path.name for path in teachers.iterdir()}
    mode = (teachers / closed).stat().st_mode
    (teachers / closed).chmod(0o000)
    try:
        with permissions_bind():
            assert caramba("export", str(teachers / "run"), "-o", str(teachers / "out")) == 2
    finally:
        (teachers / closed).chmod(mode)
    told = only_report(capsys)
    assert closed in told
    assert {path.name for path in teachers.iterdir()} == before
