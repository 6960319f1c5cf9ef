"""What the shell offers: values of parameters, by the functions that give them, and through the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from caramba_plugins_tools.completion import components, groups, manifests, presets, runs, settings

from caramba_core.cli import main

BASE = """\
version: 1
name: base
vars: {width: 64, layers: 2, kind: mine}
model:
  type: transformer
  embedder: {type: token, vocab_size: 61, d_model: "${width}"}
  topology: {type: stacked, layers: [{type: mha, n_heads: 4, head_dim: 16}]}
groups:
  - name: small
    data: {train: train.npy}
    runs:
      - {id: pretrain, mode: train, steps: 4, train: {strategy: pretrain, lr: 1.0e-3}}
      - {id: check, mode: train, steps: 1, train: {strategy: pretrain, lr: 1.0e-3}}
"""
MINE = """\
extends: base.yml
name: mine
vars: {layers: 3}
groups:
  - {name: small, extends: small}
  - name: wide
    extends: small
    vars: {width: 96}
    runs: [{id: once, mode: train, steps: 4, train: {strategy: pretrain, lr: 1.0e-3}}]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "base.yml").write_text(BASE)
    (tmp_path / "mine.yml").write_text(MINE)
    (tmp_path / "broken.yml").write_text("version: [")
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "other.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_presets_and_components() -> None:
    assert "smollm2_135m_dba" in presets({}, "")
    assert {"dba", "linear", "adamw"} <= set(components({}, ""))
    assert "optimizer.adamw" in components({}, "optimizer.")


def test_manifests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(manifests({}, "b")) == ["base.yml", "broken.yml"]
    assert list(manifests({}, "smollm2_135m_d")) == ["smollm2_135m_dba"]
    assert list(manifests({}, "more/")) == ["more/other.json"]
    assert list(manifests({}, "./m")) == ["./mine.yml", "./more/"]
    assert list(manifests({}, "mor")) == ["more/"]
    assert list(manifests({}, "nowhere/x")) == []
    monkeypatch.setenv("_CARAMBA_COMPLETE", "complete_bash")
    assert list(manifests({}, "mor")) == []  # bash names the folder itself, and adds no space


def test_groups_and_runs() -> None:
    assert list(groups({"manifest": "mine.yml"}, "")) == ["small", "wide"]
    assert list(runs({"manifest": "mine.yml"}, "")) == ["pretrain", "check", "once"]
    assert list(runs({"manifest": "mine.yml", "group": ("wide",)}, "")) == ["once"]
    assert list(groups({}, "")) == list(runs({}, "")) == list(settings({}, "")) == []


def test_settings_carry_the_values_that_hold() -> None:
    given = {"manifest": "mine.yml"}
    assert list(settings(given, "vars.")) == ["vars.width=64", "vars.layers=3", "vars.kind=mine"]
    assert list(settings(given, "")) == ["vars.", "groups."]
    assert list(settings(given, "groups.")) == ["groups.small.", "groups.wide."]
    train = "groups.wide.runs.once.train."
    assert list(settings(given, f"{train}lr")) == [f"{train}lr=0.001", f"{train}lr_factors="]
    assert f"{train}lora.rank=16" in settings(given, f"{train}l")  # of a section that is not there
    assert f"{train}batch_size=8" in settings(given, train)  # a default that could be changed
    assert f"{train}compile=auto" in settings(given, train)
    assert f"{train}lora.targets=" in settings(given, f"{train}lora.")  # what a shell would have to quote
    assert "groups.small.eval.context=1024" in settings(given, "groups.small.eval")
    assert len(list(settings({"manifest": "smollm2_135m_dba"}, "groups.x2.runs."))) < 30


def complete(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash is offered for the last of these words."""
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    monkeypatch.setenv("_CARAMBA_COMPLETE", "complete_bash")
    with pytest.raises(SystemExit):
        main([])
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("caramba com", ["compile", "compare"]),
        ("caramba run bas", ["base.yml"]),
        ("caramba run mine.yml --group w", ["wide"]),
        ("caramba run mine.yml --group wide --run ", ["once"]),
        ("caramba compile mine.yml --set vars.w", ["vars.width=64"]),
        ("caramba compile --set vars.w", []),
        ("caramba run broken.yml --group ", []),
        ("caramba run nowhere.yml --set groups.", []),
        ("caramba explain linear_", ["linear_attention"]),
        ("caramba presets show llama32_1b_s", ["llama32_1b_servable"]),
    ],
)
def test_commands(
    words: str, offered: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete(words, capsys, monkeypatch) == offered


def test_no_large_library_is_imported() -> None:
    """A shell waits while it is asked: neither torch nor numpy come in."""
    asks = "import sys\nfrom caramba_core.cli import main\ntry:\n main([])\nexcept SystemExit:\n pass\n"
    asks += "print(sorted({'torch', 'numpy'} & sys.modules.keys()))"
    words = {"COMP_WORDS": "caramba run mine.yml --set groups.small.runs.check.st", "COMP_CWORD": "4"}
    environment = {**os.environ, **words, "_CARAMBA_COMPLETE": "complete_bash"}
    asked = subprocess.run([sys.executable, "-c", asks], env=environment, capture_output=True, text=True, check=True)
    assert asked.stdout.split() == ["groups.small.runs.check.steps=1", "[]"]
