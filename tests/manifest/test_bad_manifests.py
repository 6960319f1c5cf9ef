"""Every bad manifest under ``bad/`` against its report, word for word.

``CARAMBA_WRITE_REPORTS=1 pytest tests/manifest/test_bad_manifests.py`` writes the reports anew; read the difference.
A first line ``#: --set path=value`` gives what stands on the command line.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from caramba_core.errors import ManifestError
from caramba_core.manifest.load import load_manifest
from caramba_core.plugins.registry import Registry

BAD = Path(__file__).parent / "bad"
CASES = sorted(path.name for path in BAD.iterdir() if path.suffix in (".yml", ".yaml", ".json"))


def overrides(file: Path) -> list[str]:
    """What a bad manifest's first lines put on the command line."""
    text = file.read_bytes().decode(errors="replace")
    return [line.removeprefix("#: --set ") for line in text.splitlines() if line.startswith("#: --set ")]


@pytest.mark.parametrize("name", CASES)
def test_report(name: str, example_plugins: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(ManifestError) as caught:
        load_manifest(name, overrides=overrides(BAD / name))
    report = f"{caught.value}\n"
    snapshot = BAD / f"{name}.txt"
    if os.environ.get("CARAMBA_WRITE_REPORTS"):
        snapshot.write_text(report, encoding="utf-8")
    assert report == snapshot.read_text(encoding="utf-8")
    assert caught.value.exit_code == 2


def test_there_are_many() -> None:
    assert len(CASES) >= 60


def test_the_manifest_that_they_spoil_is_good(example_plugins: Registry) -> None:
    assert load_manifest("small").manifest.name == "small"
