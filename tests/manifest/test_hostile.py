"""Texts of a mebibyte that are made to take for ever: each gives a report of bounded size."""

from __future__ import annotations

from pathlib import Path

import pytest

from caramba_core.errors import ManifestError
from caramba_core.manifest import load_manifest

SIZE = 1 << 20

TEXTS = {
    "brackets": "[" * SIZE,
    "braces": "{" * SIZE,
    "dashes": "- " * (SIZE // 2),
    "colons": "a: " * (SIZE // 3),
    "questions": "? " * (SIZE // 2),
    "questions in braces": "{" + "? " * (SIZE // 2 - 1),
    "anchors": "a: " + "&a " * (SIZE // 3 - 1),
    "tags": "a: " + "!a " * (SIZE // 3 - 1),
    "tabs": "\t" * SIZE,
    "directives": "%\n" * (SIZE // 2),
    "documents": "---\n" * (SIZE // 4),
    "steps": "".join(" " * depth + "a:\n" for depth in range(1400)),
    "one key": "x" * (SIZE - 3) + ": 1",
    "one value": "a: " + "x" * (SIZE - 3),
    "references": "version: 1\nvars: {a: 1}\nname: '" + "${a}" * (SIZE // 4 - 20) + "'",
    "dollars": "version: 1\nname: '" + "$" * (SIZE - 60) + "'",
    "sums": "version: 1\nname: '${" + "1+" * (SIZE // 2 - 60) + "1}'",
    "unknown variables": "version: 1\nname: [" + "'${b}'," * 5000 + "]",
    "unknown keys": "version: 1\n" + "".join(f"verson{index}: 1\n" for index in range(5000)),
    "equal keys": "a: 1\n" * 5000,
    "aliases": "a: &a [1, 2]\nb: [" + "*a," * 30000 + "]",
    "merges": "a: &a {}\nb: {" + "<<: *a, " * 30000 + "}",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("suffix", [".yml", ".json"])
def test_a_report_of_bounded_size(name: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"m{suffix}").write_text(TEXTS[name], encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        load_manifest(tmp_path / f"m{suffix}")
    assert 1 <= len(caught.value.problems) <= 201
    assert len(str(caught.value)) < 250_000


def test_problems_that_are_not_shown_are_counted(tmp_path: Path) -> None:
    (tmp_path / "m.yml").write_text(TEXTS["equal keys"], encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        load_manifest(tmp_path / "m.yml")
    assert caught.value.problems[-1].message.endswith("problems more")
