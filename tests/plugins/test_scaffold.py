"""``plugins new``: what it writes works as it is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from caramba_plugins_tools.scaffold import SCAFFOLDS, write_distribution

from caramba_core.errors import InputError
from caramba_core.kinds import LAYER_KINDS
from tests.plugins.site import Site


def install(site: Site, folder: Path) -> None:
    """``pip install`` a written distribution: build its wheel, without network, and unpack it into the site."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site.folder), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def own_tests(site: Site, folder: Path) -> int:
    """Run a distribution's own tests as its author would, and return how many passed."""
    ran = site.run("pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert ran.code == 0, ran.out
    summary = re.search(r"(\d+) passed", ran.out)
    assert summary is not None and "skipped" not in ran.out, ran.out
    return int(summary[1])


CHECKS = {"attention": 2 * 20, "layer": 14, "topology": 14, "strategy": 3, "loader": 1, "tracker": 2}
"""Tests that a written distribution has at least: checks of the kit for each of its cases, and its own."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_written_distribution_passes_its_own_tests(site: Site, tmp_path: Path, kind: str) -> None:
    written = site.caramba("plugins", "new", f"odd_{kind}", "--kind", kind, cwd=tmp_path)
    assert written.code == 0, written.err
    folder = tmp_path / f"caramba-plugin-odd-{kind}"
    install(site, folder)
    assert own_tests(site, folder) >= CHECKS[kind]
    checked = site.check(f"caramba-plugin-odd-{kind}")
    assert checked.code == 0, checked.out
    assert "imports torch" not in checked.out
    shown = site.caramba("plugins", "show", f"odd_{kind}")
    assert f"odd_{kind}" in shown.out
    assert "problem" not in shown.out
    if "example.yml" in (folder / "README.md").read_text():
        planned = site.caramba("compile", "example.yml", "--print-plan", cwd=folder)
        assert planned.code == 0, planned.err
        assert f"odd_{kind} " in planned.out
    assert (folder / "example.yml").exists() == (kind in LAYER_KINDS)


def test_every_kind_has_its_scaffold() -> None:
    assert set(SCAFFOLDS) == set(CHECKS)


def test_placeholders_are_all_filled(site: Site, tmp_path: Path) -> None:
    for kind in SCAFFOLDS:
        for file in write_distribution("a_name", kind, tmp_path / kind).rglob("*"):
            if file.is_file():
                text = file.read_text()
                assert "${" not in text, file
                compile(text, str(file), "exec") if file.suffix == ".py" else None


@pytest.mark.parametrize("name", ["Caps", "two words", "1st", "dash-ed", "under__score", "", "../up", "class.name"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name"):
        write_distribution(name, "attention", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_unknown_kind_taken_name_and_full_folder(site: Site, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'attention'"):
        write_distribution("fine", "atention", tmp_path / "x")
    with pytest.raises(InputError, match="the attention 'gqa' exists already, in caramba-plugins-standard"):
        write_distribution("gqa", "layer", tmp_path / "x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(InputError, match="not an empty folder"):
        write_distribution("fine", "layer", tmp_path / "full")
