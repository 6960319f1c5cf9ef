"""The commit that a run came from: of the checkout that has the program, and of no other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from caramba_core.run.source import commit


def _git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_commit_of_a_tracked_file_and_of_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, beside = tmp_path / "package" / "module.py", tmp_path / "environment.py"
    inside.parent.mkdir()
    inside.write_text("first = 1\n")
    beside.write_text("")
    _git(tmp_path, "init", "--quiet")
    _git(tmp_path, "add", "package")
    _git(tmp_path, "commit", "--quiet", "--message", "first")
    _git(tmp_path, "tag", "v1")
    head = _git(tmp_path, "rev-parse", "--short=12", "HEAD").strip()
    assert commit(str(inside)) == head
    assert commit(str(beside)) is None  # an environment in somebody's checkout
    inside.write_text("first = 2\n")
    assert commit(str(inside)) == f"{head}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit(str(inside)) is None  # no git
