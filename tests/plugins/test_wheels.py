"""From built wheels, in environments that have nothing of this checkout: list, plan, run, resume, what is missing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from caramba_core import __version__
from scripts import release
from scripts.release import faults_of_wheel, name_of
from tests.distributions import DISTRIBUTIONS
from tests.plugins.site import Site
from tests.prepared import Ran

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

PLAIN = """
version: 1
name: plain
model:
  type: transformer
  embedder: {type: tiny_embedder, vocab_size: 64, d_model: 16}
  topology: {type: tiny_topology, layers: [{type: tiny_attention, n_heads: 2}]}
  head: {type: tiny_head}
"""


TINY = """
from typing import ClassVar
from caramba_core.components import Attention, Body, Embedder, Head, Layer, Topology, Weight, component, option

@component
class Vectors(Embedder):
    builds: ClassVar[str] = "tiny:nothing"
    d_model: int = option(help="width")

    def output_width(self, width):
        return self.d_model

    def weights(self, width):
        return {"weight": Weight(shape=(self.vocab_size, self.d_model))}

@component
class Logits(Head):
    builds: ClassVar[str] = "tiny:nothing"

    def output_width(self, width):
        return self.vocab_size

    def weights(self, width):
        return {"weight": Weight(shape=(self.vocab_size, width))}

@component
class Chain(Topology):
    builds: ClassVar[str] = ""
    inline: ClassVar[str | None] = "caramba_core.nn.sequence:chain"
    layers: tuple[Layer, ...] = option(help="the layers")

    def bodies(self):
        return (Body(layers=self.layers),)

@component
class Mixing(Attention):
    builds: ClassVar[str] = "tiny:nothing"
    n_heads: int = option(help="heads")

    def weights(self, width):
        return {name: Weight(shape=(width, width)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
"""


class Environment(release.Environment):
    """The same, with what a command did in the form of the other tests."""

    def ran(self, *arguments: str) -> Ran:
        """``caramba ARGUMENTS``, to its end."""
        return Ran(*self.caramba(*arguments))


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
        assert list(faults_of_wheel(wheel, __version__)) == [], wheel.name
    tools = zipfile.ZipFile(next(wheel for wheel in wheels if name_of(wheel) == "caramba-plugins-tools")).namelist()
    assert "caramba_plugins_tools/templates/common/pyproject.toml.template" in tools


@pytest.mark.slow
def test_list_run_uninstall(wheels: list[Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install(wheels)
    np.save(tmp_path / "tokens.npy", (np.arange(500) % 50).astype("uint16"))
    (tmp_path / "tiny.yml").write_text(MANIFEST)

    data = json.loads(environment.ran("plugins", "list", "--json").out)
    plugins = {name_of(wheel) for wheel in wheels} - {
        "caramba",
        "caramba-document",
        "caramba-terminal",
    }  # which plug into nothing
    assert {plugin["distribution"] for plugin in data["plugins"]} == plugins
    assert {plugin["state"] for plugin in data["plugins"]} == {"ok"}
    checked = environment.ran("plugins", "check", "caramba-plugin-example")
    assert checked.code == 0, checked.out
    ran = environment.ran("run", "tiny.yml")
    assert ran.code == 0, ran.err
    summary = json.loads((tmp_path / "runs/tiny/main/first/summary.json").read_text())
    assert summary["versions"]["caramba-plugin-example"] == __version__

    environment.pip("uninstall", "--yes", "caramba-plugin-example")
    ran = environment.ran("run", "tiny.yml", "--output", "again")
    assert ran.code == 2
    assert "tiny.yml:10:60" in ran.err
    assert "there is no layer or attention or topology 'alibi'" in ran.said
    assert not (tmp_path / "again").exists()
    (tmp_path / "tiny.yml").write_text("requires: [caramba-plugin-example]" + MANIFEST)
    ran = environment.ran("run", "tiny.yml")
    assert ran.code == 2
    assert "caramba-plugin-example, which is not installed" in ran.said
    assert "pip install 'caramba-plugin-example'" in ran.said

    environment.pip("uninstall", "--yes", "caramba-plugins-dba")
    (tmp_path / "tiny.yml").write_text(MANIFEST.replace("alibi", "dba"))
    ran = environment.ran("run", "tiny.yml")
    assert ran.code == 2
    assert "it is supplied by caramba-plugins-dba, which is not installed: pip install caramba-plugins-dba" in ran.said
    (tmp_path / "tiny.yml").write_text(
        MANIFEST.replace("{type: alibi, n_heads: 2}", "{type: mha, n_heads: 2, head_dim: 8}")
    )
    ran = environment.ran("run", "tiny.yml", "--output", "without")
    assert ran.code == 0, ran.err


@pytest.mark.slow
def test_the_core_and_the_standard_components_run_and_resume(wheels: list[Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install(wheels, "caramba-core", "caramba-document", "caramba-terminal", "caramba-plugins-standard")
    np.save(tmp_path / "tokens.npy", (np.arange(500) % 50).astype("uint16"))
    manifest = MANIFEST.replace("{type: alibi, n_heads: 2}", "{type: mha, n_heads: 2, head_dim: 8}")
    manifest = manifest.replace("steps: 2,", "steps: 60,").replace(
        "context: 16}}", "context: 16, checkpoint_every: 2}}"
    )
    (tmp_path / "tiny.yml").write_text(manifest)
    folder = tmp_path / "runs/tiny/main/first"

    killed = environment.start("run", "tiny.yml")
    while killed.poll() is None and not list(folder.glob("checkpoints/step*")):
        time.sleep(0.01)
    killed.kill()
    out, err = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, out + err
    assert not (folder / "summary.json").exists()
    resumed = environment.ran("run", "tiny.yml", "--resume")
    assert resumed.code == 0, resumed.err
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["versions"]) >= {"caramba-core", "caramba-plugins-standard"}
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))

    (tmp_path / "tiny.yml").write_text(MANIFEST.replace("alibi", "dba"))
    refused = environment.ran("compile", "tiny.yml")
    assert refused.code == 2
    assert "tiny.yml:10:60: error:" in refused.err
    assert "caramba-plugins-dba, which is not installed: pip install caramba-plugins-dba" in refused.said


@pytest.mark.slow
def test_the_core_alone_lists_plans_and_says_what_is_missing(wheels: list[Path], tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    environment.install(wheels, "caramba-core", "caramba-document", "caramba-terminal")
    (tmp_path / "tiny.yml").write_text(MANIFEST)
    listed = json.loads(environment.ran("plugins", "list", "--json").out)
    assert [(plugin["distribution"], plugin["state"]) for plugin in listed["plugins"]] == [("caramba-core", "ok")]
    assert environment.ran("--help").code == 0
    refused = environment.ran("compile", "tiny.yml")
    assert refused.code == 2
    for place, missing in (
        ("6:20", "embedder 'token'"),
        ("8:11", "topology 'stacked'"),
        ("17:27", "mode 'train'"),
    ):
        assert f"tiny.yml:{place}: error:" in refused.err
        assert f"there is no {missing}" in refused.said
    assert "pip install that plugin" in refused.said

    # What is installed is planned, whoever supplies it.
    made = Site(tmp_path)
    kinds = {"embedder": "Vectors", "head": "Logits", "topology": "Chain", "attention": "Mixing"}
    entries = {f"caramba.{kind}": {f"tiny_{kind}": f"tiny:{name}"} for kind, name in kinds.items()}
    made.add("tiny", entries=entries, modules={"tiny": TINY})
    environment.add_path(made.folder)
    (tmp_path / "tiny.yml").write_text(PLAIN)
    planned = environment.ran("compile", "tiny.yml", "--json")
    assert planned.code == 0, planned.err
    (plan,) = json.loads(planned.out)
    assert plan["model"]["parameters"] == 2 * 64 * 16 + 4 * 16 * 16
