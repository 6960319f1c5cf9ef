"""``plugins new``: what it writes works as it is."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from caramba_core.errors import InputError
from caramba_core.plugins.scaffold import SCAFFOLDS, write_distribution
from tests.plugins.site import Ran, Site


def install(site: Site, folder: Path) -> dict[str, str]:
    """Make a written distribution importable and known, as ``pip install -e`` does; the environment for it."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    groups = project["entry-points"]
    site.add(project["name"], entries=groups, version=project["version"], requires=project["dependencies"])
    return {"PYTHONPATH": os.pathsep.join([str(site.folder), str(folder / "src")])}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCAFFOLDS)
def test_written_distribution_passes_its_own_tests(site: Site, tmp_path: Path, kind: str) -> None:
    written = site.caramba("plugins", "new", f"odd_{kind}", "--kind", kind, cwd=tmp_path)
    assert written.code == 0, written.err
    folder = tmp_path / f"caramba-plugin-odd-{kind}"
    environment = install(site, folder)
    ran: Ran = site.run("-m", "pytest", "-q", "-p", "no:cacheprovider", environment=environment, cwd=folder)
    assert ran.code == 0, ran.out
    assert " passed" in ran.out
    checked = site.caramba("plugins", "check", f"caramba-plugin-odd-{kind}", environment=environment)
    assert checked.code == 0, checked.out
    assert "imports torch" not in checked.out
    shown = site.caramba("plugins", "show", f"odd_{kind}", environment=environment)
    assert f"odd_{kind}" in shown.out


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
