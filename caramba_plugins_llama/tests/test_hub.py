"""``hf://`` against a hub on this machine, through the real library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from caramba_plugins_llama.hub import Hub
from caramba_plugins_standard.loading import fetch_source, open_source
from huggingface_hub import constants

from caramba_core.errors import InputError, PluginError

from .conftest import write_oracle
from .local_hub import COMMIT, TOKEN, LocalHub


def test_only_what_is_needed_and_the_commit_is_pinned(hub: LocalHub, tmp_path: Path) -> None:
    write_oracle(tmp_path / "model", "llama", shards=True)
    files = hub.add("org/model", tmp_path / "model")
    files.update({"README.md": b"#", "original/consolidated.00.pth": b"\x80", "pytorch_model.bin": b"\x80"})
    fetched = fetch_source("hf://org/model", tmp_path)
    assert fetched.pinned == f"hf://org/model@{COMMIT}"
    shards = {file for file in files if file.endswith(".safetensors")}
    assert len(shards) > 1
    expected = {"config.json", "generation_config.json", "model.safetensors.index.json", *shards}
    assert set(hub.fetched) == expected
    assert any(TOKEN in header.get("authorization", header.get("Authorization", "")) for header in hub.headers)

    checkpoint = open_source(fetched.pinned, tmp_path)  # links into the cache's blobs are its own files
    assert len(checkpoint.layout()) == 3 * 9 + 3
    assert set(hub.fetched) == expected, "the second time nothing is fetched anew"


def test_offline_reads_the_cache(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_oracle(tmp_path / "model", "llama")
    hub.add("org/model", tmp_path / "model")
    with pytest.raises(InputError, match=r"org/other.*not in the hub's cache.*HF_HUB_OFFLINE"):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        Hub.fetch("org/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert Hub.cached("org/model") is None
    online = Hub.fetch("org/model")
    assert Hub.cached("org/model") == online.path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.down = True
    for location in ("org/model", f"org/model@{COMMIT}"):
        assert Hub.fetch(location) == online


def test_one_file(hub: LocalHub, tmp_path: Path) -> None:
    hub.repositories["org/gguf"] = {"sub/a.gguf": b"GGUF....", "sub/b.gguf": b"GGUF", "README.md": b"#"}
    fetched = Hub.fetch("org/gguf@main/sub/a.gguf")
    assert fetched.path.read_bytes() == b"GGUF...."
    assert fetched.pinned == f"hf://org/gguf@{COMMIT}/sub/a.gguf"
    assert hub.fetched == ["sub/a.gguf"]


def test_templates_and_added_tokens_are_fetched(hub: LocalHub, tmp_path: Path) -> None:
    write_oracle(tmp_path / "model", "llama")
    beside = {"chat_template.jinja": "{{ messages }}", "added_tokens.json": "{}", "special_tokens_map.json": "{}"}
    for name, content in beside.items():
        (tmp_path / "model" / name).write_text(content)
    hub.add("org/model", tmp_path / "model")
    companions = open_source("hf://org/model", tmp_path).companions()
    assert {name: companions[name] for name in beside} == beside


def test_all_parts_of_a_split_file(hub: LocalHub) -> None:
    names = [f"sub/m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    hub.repositories["org/gguf"] = {name: name.encode() for name in names}
    assert Hub.cached(f"org/gguf/{names[1]}") is None
    assert Hub.fetch(f"org/gguf/{names[1]}").path.read_text() == names[1]
    assert hub.fetched == names
    assert Hub.cached(f"org/gguf/{names[2]}") is not None
    del hub.repositories["org/gguf"][names[0]]
    with pytest.raises(InputError, match=f"has no file {names[0]}"):
        Hub.fetch(f"org/gguf/{names[1]}")


def test_shards_that_lead_out_are_not_asked_for(hub: LocalHub) -> None:
    index = json.dumps({"weight_map": {"x": "../../../etc/passwd"}}).encode()
    hub.repositories["org/bad"] = {"config.json": b"{}", "model.safetensors.index.json": index}
    with pytest.raises(InputError, match="leads out of the checkpoint's folder"):
        Hub.fetch("org/bad")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("org/gated", r"is gated(.|\n)*hf auth login"),
        ("org/none", r"does not exist, or is private(.|\n)*hf auth login"),
        ("org/plain@v9", r"no revision 'v9'"),
        ("org/plain/none.gguf", r"has no file none\.gguf"),
        ("org/plain", r"no safetensors(.|\n)*hf://org/plain/pytorch_model.bin"),
        ("org/files", r"no config\.json(.|\n)*FILE\.gguf"),
        ("org", "not an address"),
        ("org/a b", "not an address"),
        ("org/../etc", "not an address|leads out"),
        ("org/plain/../../x", "leads out"),
        ("", "not an address"),
    ],
)
def test_what_stands_in_the_way(hub: LocalHub, location: str, message: str) -> None:
    hub.gated.add("org/gated")
    hub.repositories["org/plain"] = {"config.json": b"{}", "pytorch_model.bin": b"\x80"}
    hub.repositories["org/files"] = {"a.gguf": b"GGUF"}
    with pytest.raises(InputError, match=message) as caught:
        Hub.fetch(location)
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_network(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError(f"cannot connect, Bearer {TOKEN}")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(InputError, match=r"could not be fetched: cannot connect(.|\n)*HF_HUB_OFFLINE=1") as caught:
        Hub.fetch("org/model")
    assert TOKEN not in str(caught.value)


def test_full_disk_is_told_apart(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from caramba_core.errors import ResourceExhausted

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    hub.repositories["org/plain"] = {"config.json": b"{}", "model.safetensors": b"x"}
    with pytest.raises(ResourceExhausted, match="disk"):
        Hub.fetch("org/plain")


def test_an_unknown_scheme_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"no installed plugin fetches from s3://(.|\n)*hf://"):
        open_source("s3://bucket/model", tmp_path)
