"""The presets that are installed, and what reading one costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from caramba_document.writing import dump

from caramba_core.manifest.load import load_manifest
from caramba_core.plugins.registry import registry

NAMES = [entry.name for entry in registry().entries("preset")]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_sound(name: str) -> None:
    assert load_manifest(name).manifest.name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", [".yml", ".yaml", ".json"])
def test_what_is_resolved_reads_as_the_same_manifest(name: str, suffix: str, tmp_path: Path) -> None:
    loaded = load_manifest(name)
    text = json.dumps(loaded.document) if suffix == ".json" else dump(loaded.document)
    (tmp_path / f"m{suffix}").write_text(text, encoding="utf-8")
    again = load_manifest(tmp_path / f"m{suffix}")
    assert again.manifest == loaded.manifest
    assert again.document == loaded.document


@pytest.mark.parametrize("name", NAMES)
def test_one_group_alone_reads_as_that_group(name: str, tmp_path: Path) -> None:
    loaded = load_manifest(name)
    for group in loaded.manifest.groups:
        (tmp_path / "m.yml").write_text(dump(loaded.resolved_group(group.name)), encoding="utf-8")
        again = load_manifest(tmp_path / "m.yml").manifest
        assert again.groups == (group,)
        assert again.model == group.model


@pytest.mark.parametrize("name", NAMES)
def test_reading_imports_neither_torch_nor_numpy(name: str) -> None:
    program = (
        "import sys\nfrom caramba_core.manifest.load import load_manifest\n"
        f"load_manifest({name!r})\nprint(*sorted({{'torch', 'numpy', 'transformers'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
