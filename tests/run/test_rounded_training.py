"""Runs that train with the cache rounded: what they learn from, what is refused, and how they go on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .workspace import make_workspace, run


def workspace(folder: Path, settings: str) -> Path:
    folder.mkdir()
    manifest = make_workspace(folder)
    manifest.write_text(manifest.read_text().replace("device: cpu,", f"device: cpu, {settings}"))
    return manifest


def losses(manifest: Path) -> list[float]:
    lines = (manifest.parent / "runs" / "small" / "half" / "finetune" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_what_is_learned_from_is_rounded(tmp_path: Path) -> None:
    found = {}
    for name, settings in (("plain", ""), ("int8", "cache: int8,"), ("int4", "cache: {type: int4, block: 8},")):
        manifest = workspace(tmp_path / name, settings)
        assert run(manifest) == 0
        found[name] = losses(manifest)
    apart = {name: max(abs(a - b) for a, b in zip(found[name], found["plain"], strict=True)) for name in found}
    assert 0 < apart["int8"] < apart["int4"] < 0.1


def test_an_attention_that_caches_a_state_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = workspace(tmp_path / "linear", "cache: int8,")
    attention = re.compile(r"\{type: dba.*?o_bias: true\}", re.DOTALL)
    linear = "{type: linear_attention, n_heads: 4, n_kv_heads: 2, head_dim: 8, features: 8}"
    manifest.write_text(attention.sub(linear, manifest.read_text()))
    assert run(manifest) == 2
    error = capsys.readouterr().err
    assert "manifest.yml:32:84:" in error and "caches no keys and values of tokens" in error, error
    assert not (manifest.parent / "runs").exists()
