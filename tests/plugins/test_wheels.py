"""From built wheels, in an environment that has nothing of this checkout: list, run, uninstall, the error."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from caramba_core import __version__
from tests.distributions import DISTRIBUTIONS
from tests.plugins.site import Ran

MANIFEST = """
version: 1
name: tiny
model:
  type: transformer
  embedder: {type: token, vocab_size: 64, d_model: 16}
  topology:
    type: stacked
    layers:
      - {type: residual, layers: [{type: rms_norm}, {type: alibi, n_heads: 2}]}
      - {type: rms_norm}
groups:
  - name: main
    data: {train: tokens.npy, heldout: tokens.npy}
    eval: {context: 16, windows: 2}
    runs:
      - {id: first, mode: train, steps: 2, train: {strategy: pretrain, lr: 1.0e-2, batch_size: 2, context: 16}}
"""


class Environment:
    """A virtual environment with the third-party packages of this one, and of caramba what is installed into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / "bin" / "python"
        others = folder / "third_party"
        others.mkdir()
        for place in {Path(entry) for entry in sys.path if entry.endswith("site-packages")}:
            for item in place.iterdir():
                ours = item.name.lower().startswith(("caramba", "_editable", "__editable", "_caramba"))
                if not ours and item.suffix != ".pth" and not (others / item.name).exists():
                    (others / item.name).symlink_to(item)
        (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (packages / "third_party.pth").write_text(f"{others}\n")

    def pip(self, *arguments: str) -> None:
        """``pip``, without an index."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def caramba(self, *arguments: str) -> Ran:
        """The installed script ``caramba``, outside of the checkout."""
        variables = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "COLUMNS": "200"}
        command = [str(self.python.with_name("caramba")), *arguments]
        ran = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)
        return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wheel of every distribution of this repository."""
    folder = tmp_path_factory.mktemp("wheels")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", *options, *(str(one.folder) for one in DISTRIBUTIONS)]
    subprocess.run(command, check=True, capture_output=True)
    return sorted(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheels_hold_what_they_should(wheels: list[Path]) -> None:
    assert len(wheels) == len(DISTRIBUTIONS)
    for wheel in wheels:
        names = zipfile.ZipFile(wheel).namelist()
        tops = {name.split("/")[0] for name in names}
        package = wheel.name.split("-")[0]
        assert {top for top in tops if not top.endswith(".dist-info")} == (
            {"caramba", "caramba_core"} if package == "caramba_core" else {package}
        )
        assert any(name.endswith("py.typed") for name in names)
        assert not any("__pycache__" in name for name in names)
    core = zipfile.ZipFile(next(wheel for wheel in wheels if wheel.name.startswith("caramba_core-"))).namelist()
    assert "caramba_core/plugins/templates/common/pyproject.toml.template" in core


@pytest.mark.slow
def test_list_run_uninstall(wheels: list[Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.pip("install", "--no-deps", "--no-index", *map(str, wheels))
    np.save(tmp_path / "tokens.npy", (np.arange(500) % 50).astype("uint16"))
    (tmp_path / "tiny.yml").write_text(MANIFEST)

    data = json.loads(environment.caramba("plugins", "list", "--json").out)
    assert {plugin["distribution"] for plugin in data["plugins"]} == {
        wheel.name.split("-")[0].replace("_", "-") for wheel in wheels
    }
    assert {plugin["state"] for plugin in data["plugins"]} == {"ok"}
    checked = environment.caramba("plugins", "check", "caramba-plugin-example")
    assert checked.code == 0, checked.out
    ran = environment.caramba("run", "tiny.yml")
    assert ran.code == 0, ran.err
    summary = json.loads((tmp_path / "runs/tiny/main/first/summary.json").read_text())
    assert summary["versions"]["caramba-plugin-example"] == __version__

    environment.pip("uninstall", "--yes", "caramba-plugin-example")
    ran = environment.caramba("run", "tiny.yml", "--output", "again")
    assert ran.code == 2
    assert "tiny.yml:10:60" in ran.err
    assert "there is no layer or attention or topology 'alibi'" in ran.said
    assert not (tmp_path / "again").exists()
    (tmp_path / "tiny.yml").write_text("requires: [caramba-plugin-example]" + MANIFEST)
    ran = environment.caramba("run", "tiny.yml")
    assert ran.code == 2
    assert "caramba-plugin-example, which is not installed" in ran.said
    assert "pip install 'caramba-plugin-example'" in ran.said

    environment.pip("uninstall", "--yes", "caramba-plugins-dba")
    (tmp_path / "tiny.yml").write_text(MANIFEST.replace("alibi", "dba"))
    ran = environment.caramba("run", "tiny.yml")
    assert ran.code == 2
    assert "it is supplied by caramba-plugins-dba, which is not installed: pip install caramba-plugins-dba" in ran.said
    (tmp_path / "tiny.yml").write_text(
        MANIFEST.replace("{type: alibi, n_heads: 2}", "{type: mha, n_heads: 2, head_dim: 8}")
    )
    ran = environment.caramba("run", "tiny.yml", "--output", "without")
    assert ran.code == 0, ran.err
