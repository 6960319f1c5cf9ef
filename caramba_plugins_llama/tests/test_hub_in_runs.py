"""Runs whose teacher is on the hub: what stands in the way, and the commit that a run records."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from ruamel.yaml import YAML

from caramba_core.cli import main

from .binding import permissions_bind
from .conftest import write_oracle
from .local_hub import COMMIT, LATER, TOKEN, LocalHub
from .measuring import caramba, measure, only_report, refused
from .runs import decoder

Patch = pytest.MonkeyPatch


@pytest.fixture
def served(hub: LocalHub, folder: Path) -> LocalHub:
    """With the repository ``org/model``, and ``org/gated`` behind a gate."""
    hub.add("org/model", folder)
    hub.gated.add("org/gated")
    return hub


def offline(hub: LocalHub, patch: Patch) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def no_network(hub: LocalHub, patch: Patch) -> None:
    """Nobody listens where the hub was: the port was free a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")


def down(hub: LocalHub, patch: Patch) -> None:
    hub.down = True


def as_it_is(hub: LocalHub, patch: Patch) -> None: ...


OBSTACLES: dict[str, tuple[str, Callable[[LocalHub, Patch], None], tuple[str, ...]]] = {
    "offline": ("org/model", offline, ("is not in the hub's cache", "HF_HUB_OFFLINE", "while online")),
    "offline, pinned": (f"org/model@{COMMIT}", offline, ("is not in the hub's cache", "HF_HUB_OFFLINE")),
    "gated": ("org/gated", as_it_is, ("hf://org/gated is gated", "hf auth login", "HF_TOKEN")),
    "no network": ("org/model", no_network, ("hf://org/model could not be fetched", "check the network")),
    "down": ("org/model", down, ("hf://org/model could not be fetched", "503", "check the network")),
    "no such repository": ("org/none", as_it_is, ("hf://org/none does not exist, or is private", "check the name")),
    "no such branch": ("org/model@v9", as_it_is, ("hf://org/model has no revision 'v9'", "branch, tag or commit")),
    "no such commit": (f"org/model@{LATER}", as_it_is, (f"has no revision '{LATER}'",)),
    "no such file": ("org/model/q4.gguf", as_it_is, ("hf://org/model@main has no file q4.gguf",)),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stands_in_the_way(
    served: LocalHub, tmp_path: Path, name: str, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    location, stand, words = OBSTACLES[name]
    stand(served, monkeypatch)
    told = refused(tmp_path, f"{{source: 'hf://{location}'}}", f"hf://{location.partition('@')[0]}", capsys)
    assert all(word in told for word in words), told
    assert TOKEN not in told
    assert served.fetched == []


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stands_in_the_way_of_a_model_of_its_own(
    served: LocalHub, tmp_path: Path, name: str, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest says the model itself, so that the teacher is not asked for before the run is."""
    attention = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": {"theta": 500.0}}
    location, stand, words = OBSTACLES[name]
    stand(served, monkeypatch)
    code = measure(tmp_path, f"{{source: 'hf://{location}'}}", model=json.dumps(decoder(attention)))
    told = only_report(capsys)
    assert code == 2
    assert "error: groups.0.teacher.source: hf://org/" in told
    assert all(word in told for word in words), told
    assert TOKEN not in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("token", "complaint"),
    [
        (TOKEN, f"you sent {TOKEN} and it did not help"),
        ("a-token-of-another-shape", "you sent a-token-of-another-shape and it did not help"),
        (TOKEN, "no answer from https://reader:the-secret@mirror.example/file"),
        (TOKEN, "no answer from 'https://store.example/file?Expires=1&Signature=the-secret'"),
    ],
    ids=["token", "token of another shape", "password", "signature"],
)
def test_secrets_in_what_the_library_says(
    served: LocalHub, tmp_path: Path, token: str, complaint: str, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError(complaint)

    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    told = refused(tmp_path, "{source: hf://org/model}", "hf://org/model could not be fetched", capsys)
    assert complaint[:8] in told, "the rest of what it said is told"
    assert token not in told
    assert "the-secret" not in told


def test_a_hub_that_repeats_the_token(served: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served.complaint = f"you sent {TOKEN} and it did not help"
    told = refused(tmp_path, "{source: hf://org/model}", "hf://org/model could not be fetched", capsys)
    assert any(TOKEN in header.get("authorization", "") for header in served.headers)
    assert TOKEN not in told


def test_credentials_in_the_address_of_a_mirror(
    served: LocalHub, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    served.down = True
    monkeypatch.setattr(constants, "ENDPOINT", constants.ENDPOINT.replace("://", "://reader:a-password@"))
    told = refused(tmp_path, "{source: hf://org/model}", "503", capsys)
    assert "a-password" not in told, told


def test_a_hub_that_is_gone_midway(
    served: LocalHub, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer: Callable[[str, str], tuple[int, dict[str, str], bytes]] = served.answer

    def until_the_weights(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        served.down = served.down or path.endswith(".safetensors")
        return answer(method, path)

    monkeypatch.setattr(served, "answer", until_the_weights)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library tries again, after ever longer pauses
    assert measure(tmp_path, "{source: hf://org/model}") == 2
    told = only_report(capsys)
    assert "hf://org/model could not be fetched" in told
    assert TOKEN not in told
    assert served.fetched == ["config.json", "generation_config.json"]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_cache_that_may_not_be_written(
    served: LocalHub, tmp_path: Path, mode: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").mkdir(mode=mode)
    with permissions_bind():
        told = refused(tmp_path, "{source: hf://org/model}", "the hub's cache cannot be written", capsys)
    assert "Permission denied" in told
    assert "set HF_HOME" in told


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_cache_that_takes_no_more(
    served: LocalHub, tmp_path: Path, number: int, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    told = refused(tmp_path, "{source: hf://org/model}", "the disk of the hub's cache takes no more", capsys, code=5)
    assert os.strerror(number) in told


# ------------------------------------------------------------------------------------------------ the commit


def written(root: Path) -> Path:
    return root / "measured" / "g" / "measure" / "manifest.yml"


def source_in(manifest: str) -> Any:
    (group,) = YAML(typ="safe", pure=True).load(manifest)["groups"]
    return group["teacher"]["source"]


def perplexity(root: Path) -> Any:
    return json.loads((written(root).parent / "summary.json").read_text())["perplexity"]["end"]


@pytest.mark.parametrize("fresh", [False, True], ids=["from the cache", "fetched anew"])
def test_a_written_manifest_reads_the_commit_that_was_measured(
    served: LocalHub, tmp_path: Path, fresh: bool, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(tmp_path, "{source: hf://org/model}") == 0
    manifest = written(tmp_path / "runs")
    pinned = f"hf://org/model@{COMMIT}"
    assert source_in(manifest.read_text()) == pinned
    capsys.readouterr()
    assert caramba("compile", "--resolved", str(manifest)) == 0
    assert source_in(capsys.readouterr().out) == pinned

    write_oracle(tmp_path / "other", "llama", seed=1)
    served.move("org/model", tmp_path / "other", LATER)
    served.fetched.clear()
    if fresh:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another cache"))
    assert caramba("run", str(manifest), "--output", str(tmp_path / "again")) == 0
    assert served.fetched == (["config.json", "generation_config.json", "model.safetensors"] if fresh else [])
    assert source_in(written(tmp_path / "again").read_text()) == pinned
    assert perplexity(tmp_path / "again") == perplexity(tmp_path / "runs")

    assert measure(tmp_path, "{source: hf://org/model}", "later") == 0  # the branch itself leads elsewhere by now
    assert source_in(written(tmp_path / "later").read_text()) == f"hf://org/model@{LATER}"
    assert perplexity(tmp_path / "later") != perplexity(tmp_path / "runs")


def test_a_revision_of_a_file_is_pinned_too(served: LocalHub, tmp_path: Path) -> None:
    assert measure(tmp_path, "{source: hf://org/model@main/model.safetensors}") == 0
    assert source_in(written(tmp_path / "runs").read_text()) == f"hf://org/model@{COMMIT}/model.safetensors"


def test_init_fetches_the_teacher_and_names_it_by_its_address(
    served: LocalHub, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest leads to the hub, not to its cache; without a tokenizer it asks for token ids."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["init", "--from", f"hf://org/model@{COMMIT}", "--attention", "sliding_window"])
    assert ended.value.code == 0
    assert "none yet: name a text" in capsys.readouterr().out
    text = (tmp_path / "manifest.yml").read_text()
    assert f'teacher: {{source: "hf://org/model@{COMMIT}"}}' in text
    assert "\nname: model\n" in text
    assert "your_tokens.npy" in text
