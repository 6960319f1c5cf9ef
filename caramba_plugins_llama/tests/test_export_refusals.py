"""Exports of what is damaged, unfinished or oddly named: refused in one sentence before anything is written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from caramba_plugins_llama.export import export
from caramba_plugins_llama.exporting import Folder, Original
from caramba_plugins_llama.standard_exporter import StandardExporter

from caramba_core.cli import main
from caramba_core.errors import InputError, PluginError
from caramba_core.run.checkpoint import save_checkpoint
from caramba_core.run.directory import RunDirectory, State

from .conftest import quiet, write_oracle
from .runs import SUMMARY, decoder, make_run
from .test_tokenizers import trained

GQA: dict[str, Any] = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": {"theta": 500.0}}


def refused(tmp_path: Path, words: str) -> None:
    with pytest.raises(InputError, match=words):
        export(tmp_path / "run", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_folder_that_no_loader_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = StandardExporter.describe

    def describe(form: str, original: Original) -> Folder:
        folder = described(form, original)
        return attrs.evolve(folder, config={**folder.config, "model_type": "unheard_of"})

    monkeypatch.setattr(StandardExporter, "describe", describe)
    make_run(tmp_path / "run", decoder(GQA))
    said = r"caramba-plugins-llama [\d.]+ says of --as llama cannot be read back: \S*/out/config.json is of model_type"
    with pytest.raises(PluginError, match=said):
        export(tmp_path / "run", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = tmp_path / "run" / "manifest.yml"
    manifest = json.loads(path.read_text())
    change(manifest["model"])
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda model: model["embedder"].update(vocab_size=64),
            r"embedder\.weight has shape \[61, 24\], and .*\[64, 24\]",
        ),
        (
            lambda model: model["topology"]["layers"][0].update(repeat=3),
            r"blocks\.2\.attention\.\w+ .*does not hold it",
        ),
        (lambda model: model["topology"]["layers"][0].update(repeat=1), r"blocks\.1\..* the model has no place for it"),
        (lambda model: model.update(tied_embeddings=True), r"head\.weight .*the model has no place for it"),
    ],
)
def test_a_manifest_that_does_not_fit(tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    changed(tmp_path, change)
    refused(tmp_path, rf"step_000002 does not fit the model(.|\n)*{words}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    model = make_run(tmp_path / "run", decoder(GQA))
    with torch.no_grad():
        model.get_parameter("blocks.1.mlp.up_proj").view(-1)[3] = value
    save_checkpoint(RunDirectory(tmp_path / "run").checkpoint(3), model=model, optimizer=None, state={})
    refused(tmp_path, r"1 of \d+ tensors hold NaN or infinity: blocks\.1\.mlp\.up_proj")


# ------------------------------------------------------------------------------------------------ summaries


@pytest.mark.parametrize(
    "summary",
    [
        '{"name": "n"',
        "[]",
        '"text"',
        json.dumps({"name": "n"}),
        *(
            json.dumps({**SUMMARY, **change})
            for change in (
                {"name": 3},
                {"run": None},
                {"seed": "3"},
                {"versions": ["caramba"]},
                {"versions": {"caramba": 1}},
                {"commit": 1},
                {"perplexity": 12.5},
                {"perplexity": {"end": "13"}},
                {"perplexity": {"end": None}},
                {"perplexity": {"end": float("nan")}},
                {"perplexity_ratio": {"end": -1}},
                {"perplexity_standard_error": []},
                {"cache_bytes_per_token": {"student": [1]}},
                {"scored_tokens": "many"},
                {"scored_tokens": True},
                {"cache_bytes_once": 512},
                {"cache_context": "long"},
            )
        ),
    ],
)
def test_a_damaged_summary(tmp_path: Path, summary: str) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    (tmp_path / "run" / "summary.json").write_text(summary)
    refused(tmp_path, r"summary\.json is damaged: ")


def test_a_summary_of_another_run(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    (tmp_path / "run" / "summary.json").write_text(json.dumps({**SUMMARY, "run": "other"}))
    refused(tmp_path, r"summary\.json is of the run other, which its manifest does not have")


def test_figures_without_errors(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    few = {**SUMMARY, "perplexity_standard_error": {"end": None}}
    (tmp_path / "run" / "summary.json").write_text(json.dumps(few))
    export(tmp_path / "run", tmp_path / "out")
    assert "| perplexity on held-out text | 12.500 | 20.000 | 13.750 |" in card(tmp_path / "out")


# ------------------------------------------------------------------------------------------------ unfinished runs


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (
            "failed",
            "step 3: loss is not finite\n  hint: lower it",
            "the run failed: step 3: loss is not finite; the weig",
        ),
        ("interrupted", None, "the run was interrupted; the weights are those of its checkpoint at step 2"),
        ("running", None, "the run has not ended; the weights are those of its checkpoint at step 2"),
        ("done", None, None),
    ],
)
def test_what_became_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: Any, error: str | None, words: str | None
) -> None:
    """Figures of an earlier end are not those of the weights."""
    model = make_run(tmp_path / "run", decoder(GQA))
    state, directory = State(status=status, document={}, error=error), RunDirectory(tmp_path / "run")
    directory.set_state(state)
    save_checkpoint(directory.checkpoint(2), model=model, optimizer=None, state={"run": state.identity})
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "out")])
    assert ended.value.code == 0
    text, said = card(tmp_path / "out"), capsys.readouterr().err
    assert ("**Not a finished run:** " in text) is ("warning" in said) is (words is not None)
    assert ("perplexity on held-out text" in text) is (words is None)
    assert words is None or (f"warning: {words}" in said and words in text)


def test_a_checkpoint_of_another_run(tmp_path: Path) -> None:
    model = make_run(tmp_path / "run", decoder(GQA))
    state, directory = State(status="done", document={}), RunDirectory(tmp_path / "run")
    directory.set_state(state)
    save_checkpoint(directory.checkpoint(2), model=model, optimizer=None, state={"run": "f" * 32})
    refused(tmp_path, "is of another run than")


def test_a_damaged_state(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    (tmp_path / "run" / "state.json").write_text("{}")
    refused(tmp_path, r"state\.json is damaged")


# ------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "name", ["two words", "ünïcode ✓", "-dash", 'a "quote"', "back\\slash", "{folder}", "n" * 200, "a.b"]
)
def test_odd_names_that_do(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The snippet of the card loads what has such a name."""
    make_run(tmp_path / "run", decoder(GQA))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["export", "run", f"--output={name}"])
    assert ended.value.code == 0
    code = re.search(r"```python\n(.*?)```", card(tmp_path / name), re.DOTALL)
    assert code is not None
    with quiet():
        exec(code[1], {})


@pytest.mark.parametrize(
    "name", ["new/..", "line\nbreak", "tab\tin it", "bell\a", "n" * 201, "ü" * 101, "\udc80", "a\u2028b"]
)
def test_odd_names_that_do_not(tmp_path: Path, name: str) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    with pytest.raises(InputError, match="is no name for a folder that others load") as caught:
        export(tmp_path / "run", tmp_path / name)
    assert len(str(caught.value)) < 400
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize("name", ["two words", "ünïcode", "-dash"])
def test_runs_in_odd_folders(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / name / "-run", decoder(GQA))
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(SystemExit) as ended:
        main(["export", "--output", "out", "--", "-run"])
    assert ended.value.code == 0


# ------------------------------------------------------------------------------------------------ code


def test_a_card_of_a_folder_without_code(tmp_path: Path) -> None:
    make_run(tmp_path / "run", decoder(GQA))
    export(tmp_path / "run", tmp_path / "out")
    assert "Nothing in this folder is code: the classes of transformers run it.\n" in card(tmp_path / "out")


def test_code_that_a_tokenizer_names_is_left_out(tmp_path: Path) -> None:
    """With ``trust_remote_code`` transformers would fetch it from elsewhere."""
    write_oracle(tmp_path / "hf", "llama")
    trained("smollm").save(str(tmp_path / "hf" / "tokenizer.json"))
    settings = {"eos_token": "<|im_start|>", "auto_map": {"AutoTokenizer": ["org/repo--foreign.Slow", None]}}
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(settings))
    make_run(tmp_path / "run", decoder(GQA, vocabulary=400), teacher=str(tmp_path / "hf"))
    export(tmp_path / "run", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == {"eos_token": "<|im_start|>"}
    assert "The tokenizer's settings named code that is left out: org/repo--foreign.Slow.\n" in card(tmp_path / "out")


def test_a_card_says_which_code_runs(tmp_path: Path) -> None:
    dba = {"type": "dba", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "sem_dim": 4, "geo_dim": 8, "v_dim": 6}
    pytest.importorskip("caramba_plugins_dba")
    make_run(tmp_path / "run", decoder({**dba, "rope": {"theta": 500.0}}))
    export(tmp_path / "run", tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.py")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (
        f"runs `{file.name}` (SHA-256 {digest}), which lies in this folder and came with caramba-plugins-dba 0."
        in card(tmp_path / "out")
    )


def test_a_pipe_in_place_of_a_card_is_not_waited_for(tmp_path: Path) -> None:
    write_oracle(tmp_path / "hf", "llama")
    os.mkfifo(tmp_path / "hf" / "README.md")
    command = [sys.executable, "-m", "caramba_core", "export", "hf", "-o", "out"]
    assert subprocess.run(command, cwd=tmp_path, check=False, timeout=300, capture_output=True).returncode == 0
    assert "- Licence: unknown" in card(tmp_path / "out")
