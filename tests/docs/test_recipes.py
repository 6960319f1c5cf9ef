"""Recipes run from top to bottom, each in a folder of its own: files are written, manifests compile, commands end well.

Recipes are written for models that people have.  Here they run on a teacher of three small layers: variables of their
manifests that say how large or how long something is get the values of ``SMALL``.
"""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from caramba_core.cli import main
from caramba_core.manifest.load import load_manifest
from caramba_core.plan import plan_manifest
from caramba_core.plugins.registry import registry
from tests.docs.blocks import RECIPES, ROOT, Block, blocks, commands, run
from tests.plugins.site import Site

SMALL = {
    "teacher": "teacher",
    "sem_dim": 4,
    "geo_dim": 8,
    "v_dim": 10,
    "rank": 8,
    "rope_dim": 4,
    "window": 12,
    "near": 8,
    "features": 3,
    "vocab": 64,
    "width": 32,
    "heads": 4,
    "layers": 2,
    "context": 32,
    "short": 16,
    "long": 64,
    "calibration": 128,
    "steps": 2,
    "batch": 2,
    "windows": 2,
}

SHORT = ("--set", "groups.0.runs.finetune.steps=2", "--set", "groups.0.runs.convert.start.tokens=512")
"""The same for the manifest that ``caramba init`` writes."""

TEACHER = "hf://HuggingFaceTB/SmolLM2-135M"
"""What commands name in the place of the small teacher; runs of `caramba init` have its last part as name."""

TEMPLATE = "{% for message in messages %}{{ message.content + ' ' }}{% endfor %}"

_FILE = re.compile(r"# ([\w./-]+\.(?:yml|toml|py))\n")


class Reader:
    """Somebody who does what a page says, in one folder."""

    def __init__(self, folder: Path, site: Site) -> None:
        self.folder = folder
        self.site = site
        self.names: dict[str, object] = {}
        self.variables: dict[str, set[str]] = {}

    def heed(self, block: Block) -> None:
        """Write the block's file, or run it."""
        file = _FILE.match(block.text)
        if block.language in ("bash", "console"):
            for words in commands(block):
                self.enter(words, block)
        elif file is not None:
            (self.folder / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / file[1]).write_text(block.text)
            if block.language == "yaml":
                self.compile(file[1])
        elif block.language == "python":
            run(block, self.names)
        else:
            assert block.language not in ("yaml", "toml"), f"{block} has no name"

    def compile(self, name: str) -> None:
        """Check and plan a manifest."""
        said = YAML(typ="safe", pure=True).load((self.folder / name).read_text())
        self.variables[name] = set(said.get("vars", ())) | self.variables.get(said.get("extends", ""), set())
        overrides = [text for text in self.small(name) if text != "--set"]
        assert plan_manifest(load_manifest(name, overrides=overrides))

    def small(self, name: str) -> list[str]:
        """What lays small values over a manifest."""
        if name == "manifest.yml":
            return list(SHORT)
        values = {key: value for key, value in SMALL.items() if key in self.variables.get(name, ())}
        return [word for key, value in values.items() for word in ("--set", f"vars.{key}={json.dumps(value)}")]

    def enter(self, words: list[str], block: Block) -> None:
        """Run a command of caramba; ``pip install -e`` puts a distribution beside the installed ones."""
        if words[:3] == ["pip", "install", "-e"]:
            self.install(self.folder / words[3])
        if words[0] != "caramba":
            return
        manifest = next((word for word in words[2:] if word in (*self.variables, "manifest.yml")), "")
        words = [
            re.sub(rf"{TEACHER}|(?<=runs/){Path(TEACHER).name}(?=/)", str(SMALL["teacher"]), word) for word in words
        ]
        with pytest.raises(SystemExit) as ended:
            main([*words[1:], *self.small(manifest)])
        assert not ended.value.code, f"{block}: {' '.join(words)} ends with {ended.value.code}"

    def install(self, folder: Path) -> None:
        """Install a distribution that the page has written."""
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        self.site.add(project["name"], entries=project["entry-points"], version=project["version"])
        for package in (folder / "src").iterdir():
            shutil.copytree(package, self.site.folder / package.name)
        registry.cache_clear()


@pytest.mark.parametrize("page", RECIPES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_recipe_works(
    page: Path, workspace: Path, tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(workspace, folder, ignore=shutil.ignore_patterns("*.yml"))
    text = (folder / "book.txt").read_text().split()
    lines = [" ".join(text[start : start + 10]) for start in range(0, len(text), 10)]
    (folder / "book.txt").write_text("\n".join(lines))
    (folder / "stories.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    turns = [{"role": role, "content": line} for role, line in zip(("user", "assistant") * 100, lines, strict=False)]
    chats = [json.dumps({"messages": turns[start : start + 4]}) for start in range(0, len(turns), 4)]
    (folder / "chats.jsonl").write_text("\n".join(chats))
    (folder / "teacher" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(site.folder))
    reader = Reader(folder, site)
    for block in blocks("bash", "console", "yaml", "toml", "python"):
        if block.page == page and block.not_run is None:
            reader.heed(block)
