"""``caramba data prepare ORG/NAME``: a dataset of the hub, streamed by the real library from a hub on this machine."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caramba_plugins_standard import dataset_texts, encoding, partial_array
from huggingface_hub import constants

from .local_hub import LATER, LocalHub
from .measuring import caramba
from .test_tokenizers import trained

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")
pyarrow = pytest.importorskip("pyarrow")

README = """---
configs:
- {config_name: default, data_files: [{split: train, path: data/*.parquet}]}
- {config_name: sample, data_files: [{split: train, path: sample/*.parquet}]}
---
"""


@pytest.fixture(scope="module")
def fineweb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in: two files in the default subset, and another subset."""
    folder = tmp_path_factory.mktemp("hub") / "fineweb"
    files = {"data/0": ["a thing", "it's"], "data/1": ["the cats", "then"], "sample/0": ["we'll see"]}
    for name, texts in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), folder / f"{name}.parquet")
    (folder / "README.md").write_text(README)
    return folder


@pytest.fixture
def served(hub: LocalHub, fineweb: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalHub:
    """With the dataset; ``model`` beside it carries a tokenizer."""
    trained("gpt-2").save(str(folder / "tokenizer.json"))
    hub.add("HuggingFaceFW/fineweb", fineweb)
    hub.gated.add("org/gated")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", constants.ENDPOINT)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    return hub


def prepare(source: str, output: str, *more: str) -> int:
    return caramba("data", "prepare", source, "-o", output, "--tokenizer", "model", *more)


def test_a_dataset_by_name(served: LocalHub, fineweb: Path, tmp_path: Path) -> None:
    """The ids of its files; of the default subset, of another one, of a folder with the same files."""
    assert prepare("HuggingFaceFW/fineweb", "hub.npy") == 0
    assert prepare(f"{fineweb}/data/*.parquet", "files.npy") == 0
    assert np.load("hub.npy").tolist() == np.load("files.npy").tolist()
    note = json.loads(Path("hub.npy.json").read_text())
    assert (note["texts"], note["documents"]) == (["hf://datasets/HuggingFaceFW/fineweb"], 4)
    assert note["tokens"] == len(np.load("hub.npy"))
    assert prepare(str(fineweb), "folder.npy") == 0
    assert np.load("folder.npy").tolist() == np.load("files.npy").tolist()
    assert prepare("hf://datasets/HuggingFaceFW/fineweb@main", "sample.npy", "--subset", "sample") == 0
    assert prepare(f"{fineweb}/sample/0.parquet", "one.npy") == 0
    assert np.load("sample.npy").tolist() == np.load("one.npy").tolist()
    assert prepare("HuggingFaceFW/fineweb", "some.npy", "--tokens", "3") == 0
    assert np.load("some.npy").tolist() == np.load("hub.npy").tolist()[:3]
    assert not [*tmp_path.glob("datasets/**/*.parquet"), *tmp_path.glob("datasets/**/*.arrow")]  # nothing was kept


@pytest.mark.parametrize(
    ("source", "more", "words"),
    [
        ("org/none", (), ("org/none is no file here", "hf://datasets/org/none does not exist, or is private")),
        ("org/gated", (), ("hf://datasets/org/gated is gated", "hf auth login")),
        (f"HuggingFaceFW/fineweb@{LATER}", (), ("hf://datasets/HuggingFaceFW/fineweb has no revision",)),
        ("HuggingFaceFW/fineweb", ("--subset", "x"), ("'x' not found. Available: ['default', 'sample']", "--subset")),
        ("HuggingFaceFW/fineweb", ("--split", "dev"), ("Bad split: dev. Available splits: ['train']",)),
        ("HuggingFaceFW/fineweb", ("--column", "body"), ("there is no 'body'; its columns: 'id', 'text'", "--column")),
        ("HuggingFaceFW/fineweb", ("--column", "id"), ("fineweb: row 1: 'id' is int, not text",)),
        ("hf://HuggingFaceFW/fineweb", (), ("names no dataset", "hf://datasets/org/repo")),
        ("texts/none.txt", (), ("texts/none.txt does not exist",)),
    ],
)
def test_what_stands_in_the_way(
    served: LocalHub, capsys: pytest.CaptureFixture[str], source: str, more: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert prepare(source, "x.npy", *more) == 2
    told = capsys.readouterr().err
    assert all(word in told for word in words), told
    assert not list(Path().glob("*x.npy*"))


@pytest.mark.parametrize("how", ["offline", "no network"])
def test_without_a_network(
    served: LocalHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert prepare("HuggingFaceFW/fineweb", "x.npy") == 2
    told = capsys.readouterr().err
    assert "no file here, and no dataset that could be reached" in told
    assert ("HF_HUB_OFFLINE" if how == "offline" else "check the network") in told


def test_a_hub_that_falls_silent(served: LocalHub, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Its second file cannot be read: what the first one gave stays for the next call."""
    monkeypatch.setattr(encoding, "_BATCH", 1)
    monkeypatch.setattr(dataset_texts, "_ROWS", 1)
    monkeypatch.setattr(partial_array, "_BETWEEN", 0.0)
    assert prepare("HuggingFaceFW/fineweb", "whole.npy") == 0
    answer = served.answer

    def without_a_file(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        return (403, {}, b"") if path.endswith("1.parquet") else answer(method, path)

    with monkeypatch.context() as patch:
        patch.setattr(served, "answer", without_a_file)
        assert prepare("HuggingFaceFW/fineweb", "x.npy") == 2
    assert "hf://datasets/HuggingFaceFW/fineweb could not be fetched" in capsys.readouterr().err
    assert prepare("HuggingFaceFW/fineweb", "x.npy") == 0
    assert "went on behind" in capsys.readouterr().err
    assert Path("x.npy").read_bytes() == Path("whole.npy").read_bytes()


def test_a_folder_of_plain_texts_is_not_read_by_lines(served: LocalHub, capsys: pytest.CaptureFixture[str]) -> None:
    Path("plain").mkdir()
    Path("plain/a.txt").write_text("a thing\nthen\n")
    assert prepare("plain", "x.npy") == 2
    assert "name the files, each of which is one text: plain/*.txt" in capsys.readouterr().err
    assert prepare("plain/*.txt", "x.npy") == 0
