"""Texts of a mebibyte that are made to take for ever: each gives a report of bounded size."""

from __future__ import annotations

from pathlib import Path

import pytest

from caramba_core.errors import ManifestError
from caramba_core.manifest.load import load_manifest

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


DEEP = "lists and mappings nest more than 64 deep here"


def test_what_nests_too_deep_only_when_texts_include_one_another(tmp_path: Path) -> None:
    for index in range(31):
        text = f"a: {'{a: ' * 60}{{include: {index + 1}.yml}}{'}' * 60}"
        (tmp_path / f"{index}.yml").write_text(text, encoding="utf-8")
    (tmp_path / "31.yml").write_text("a: 1", encoding="utf-8")
    with pytest.raises(ManifestError, match=DEEP):
        load_manifest(tmp_path / "0.yml")


def test_what_nests_too_deep_only_when_variables_are_filled_in(tmp_path: Path) -> None:
    inner = "".join(f"  v{index}: {'[' * 60}'${{v{index + 1}}}'{']' * 60}\n" for index in range(23))
    (tmp_path / "m.yml").write_text(f"version: 1\nvars:\n{inner}  v23: 1\nname: ${{v0}}\n", encoding="utf-8")
    with pytest.raises(ManifestError, match=DEEP):
        load_manifest(tmp_path / "m.yml")


@pytest.mark.parametrize("override", [f"a{'.a' * 2000}=1", f"a{'.0' * 30}={'[' * 60}{']' * 60}"])
def test_what_nests_too_deep_on_the_command_line(override: str, tmp_path: Path) -> None:
    (tmp_path / "m.yml").write_text("version: 1", encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        load_manifest(tmp_path / "m.yml", overrides=[override])
    assert DEEP in [problem.message for problem in caught.value.problems]
