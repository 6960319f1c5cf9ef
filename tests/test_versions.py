"""One version, wherever it is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from caramba_core import __version__
from scripts.version import ROOT, files, main, stated, written
from tests.distributions import DISTRIBUTIONS, project


def test_every_file_states_the_same_version() -> None:
    assert stated(ROOT) == __version__
    assert {one.folder / "pyproject.toml" for one in DISTRIBUTIONS} <= set(files(ROOT))
    assert [file for file in files(ROOT) if written(file, __version__) != file.read_text()] == []


def test_a_new_version_is_written_everywhere(tmp_path: Path) -> None:
    for file in files(ROOT):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    assert main(tmp_path, "0.17.3") == 0
    assert main(tmp_path, None) == 0
    assert stated(tmp_path) == "0.17.3"
    for one in DISTRIBUTIONS:
        copied = project(tmp_path / one.folder.relative_to(ROOT) / "pyproject.toml")
        assert copied["version"] == "0.17.3"
        extras = copied.get("optional-dependencies", {}).values()
        for text in sum(extras, copied.get("dependencies", [])):
            requirement = Requirement(text)
            if requirement.name.startswith("caramba") and requirement.name != copied["name"]:
                assert Version("0.17.3") in requirement.specifier, text
                assert Version("0.18.0") not in requirement.specifier, text


@pytest.mark.parametrize(
    ("version", "text", "wanted"),
    [
        ("0.9.4", '"caramba-core>=0.1,<0.2"', '"caramba-core>=0.9,<0.10"'),
        ("1.2.0", '"caramba-plugins-llama[all]>=0.1,<0.2"', '"caramba-plugins-llama[all]>=1.2,<2"'),
        ("2.0.1", 'version = "0.1.0"', 'version = "2.0.1"'),
        ("2.0.1", '"packaging>=24.0,<25"', '"packaging>=24.0,<25"'),
    ],
)
def test_ranges_end_before_what_may_break(version: str, text: str, wanted: str, tmp_path: Path) -> None:
    (file := tmp_path / "pyproject.toml").write_text(text)
    assert written(file, version) == wanted
