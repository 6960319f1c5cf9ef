"""Names with ``~``, names that are too long, and reports that fit a terminal."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from caramba_terminal.lines import _broken

from caramba_core.cli import main
from caramba_core.cli.failures import guarded
from caramba_core.errors import InputError
from caramba_core.places import expanded
from caramba_core.run.directory import RunDirectory, State

from .workspace import make_workspace

NOBODY = "~nobody_here/x"

COMMANDS = {
    "training tokens": ("run", "manifest.yml", "--set", f"groups.0.data.train={NOBODY}.npy"),
    "teacher": ("run", "manifest.yml", "--set", f"groups.0.teacher.source={NOBODY}"),
    "runs": ("run", "manifest.yml", "--output", NOBODY),
    "what is exported": ("export", NOBODY, "-o", "out"),
    "the export": ("export", "teacher", "-o", NOBODY),
    "a picture": ("graph", "smollm2_135m", "-o", f"{NOBODY}.svg"),
    "a schema": ("schema", "-o", NOBODY),
    "a plugin": ("plugins", "new", "x", "--kind", "attention", "-o", NOBODY),
    "prepared tokens": ("data", "prepare", "a.txt", "-o", f"{NOBODY}.npy", "--tokenizer", "teacher"),
}


def caramba(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_the_home_of_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    make_workspace(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    assert caramba(*arguments) == 2
    assert "there is no home of ~nobody_here" in capsys.readouterr().err
    assert not list(tmp_path.glob("~*"))


def test_home() -> None:
    assert expanded("~/x") == Path.home() / "x"
    assert expanded("a/~b") == Path("a/~b")
    with pytest.raises(InputError):
        expanded("~nobody_here")


def test_a_name_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert caramba("run", "manifest.yml", "--output", "x" * 300) == 2
    assert "hint: choose a shorter name" in capsys.readouterr().err


def test_a_state_that_is_removed_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be removed at any moment: it is gone then, not damaged."""
    directory = RunDirectory(tmp_path)
    directory.set_state(State(status="running", document={}))
    monkeypatch.setattr(Path, "exists", lambda self: True)
    (tmp_path / "state.json").unlink()
    assert directory.state() is None
    with pytest.raises(InputError, match="is gone"):
        directory.begun()


def test_reports_break_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 24)))
    said = "  hint: " + "a word or two " * 6
    assert max(map(len, _broken(said).split("\n"))) <= 40
    assert " ".join(_broken(said).split()) == " ".join(said.split())
    shown = "   33 |   - {" + "x: 1, " * 20 + "}"
    assert _broken(shown) == shown  # what the carets below it point at
    assert _broken("x" * 50) == "x" * 50
    assert _broken("") == ""


def test_warnings_break_between_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = "warning: " + "a word or two " * 6
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 24)))
        assert guarded(lambda: logging.getLogger("caramba.run").warning(words), []) == 0
        lines = capsys.readouterr().err.splitlines()
        assert " ".join(" ".join(lines).split()) == words.strip()
        assert len(lines) == (1 if not terminal else 3)
        assert not terminal or max(map(len, lines)) <= 40
