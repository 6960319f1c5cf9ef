"""The page for authors: complete, up to date, and its tutorial works as it stands."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest

from caramba_core import hookspecs
from caramba_core.kinds import KINDS
from caramba_core.plugins import API_VERSION
from caramba_core.plugins.manager import TRACE_VARIABLE
from caramba_core.plugins.registry import DISABLE_VARIABLE, registry
from scripts.pages import DOCS, PAGES, refreshed
from tests.plugins.site import Site
from tests.plugins.test_hooks_in_runs import MANIFEST
from tests.plugins.test_scaffold import install, own_tests

PAGE = DOCS / "plugins.md"
EXAMPLE = PAGE.parents[1] / "plugins" / "caramba_plugin_example"
FILE = re.compile(r"```(?:toml|python)\n# (caramba-plugin-falling/\S+)\n(.*?)```", re.DOTALL)


def files() -> dict[str, str]:
    """The tutorial's files, as a reader would copy them."""
    return dict(FILE.findall(PAGE.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    assert page.read_text() == refreshed(page), "run: python scripts/pages.py --write"


def test_every_hook_and_every_argument_is_documented() -> None:
    page = PAGE.read_text()
    for name, function in vars(hookspecs).items():
        if hasattr(function, "caramba_spec"):
            assert f"### `{name}({', '.join(inspect.signature(function).parameters)})`" in page
            assert (inspect.getdoc(function) or "").strip(), name


def test_every_kind_is_documented() -> None:
    for kind in registry().kinds.values():
        gives = f"{kind.gives} |" if kind.name in KINDS else ""
        assert f"| {kind.name} | `{kind.group}` | {gives}" in PAGE.read_text()


def test_methods_take_what_the_page_says() -> None:
    paths = [kind.contract.split(":") for kind in registry().kinds.values() if kind.contract]
    contracts = [getattr(importlib.import_module(module), name) for module, name in paths]
    compared = set()
    for name, written in re.findall(r"`(\w+)\(([\w, ]*)\)`", PAGE.read_text()):
        methods = [getattr(contract, name) for contract in contracts if hasattr(contract, name)]
        taken = [[key for key in inspect.signature(method).parameters if key != "self"] for method in methods]
        if taken:
            compared.add(name)
            assert (written.split(", ") if written else []) in taken, f"{name}({written}) takes {taken}"
    assert {"check", "bodies", "describe", "model", "propose", "survey", "surveyed"} <= compared


def test_the_version_of_the_api_is_documented() -> None:
    assert f"now **{API_VERSION}**" in PAGE.read_text()


def test_links_lead_somewhere() -> None:
    page = PAGE.read_text()
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)", page, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", page):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif "://" not in target:
            assert (PAGE.parent / target.partition("#")[0]).exists(), target


def test_the_tutorial_is_short() -> None:
    lines = sum(text.count("\n") for name, text in files().items() if "/tests/" not in name)
    assert lines < 80
    assert f"an attention in {lines} lines" in PAGE.read_text()


@pytest.mark.slow
def test_the_tutorial_works(site: Site, tmp_path: Path) -> None:
    for name, text in files().items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    folder = tmp_path / "caramba-plugin-falling"
    install(site, folder)
    assert "attention   falling" in site.caramba("plugins", "list").out
    assert own_tests(site, folder) >= 20
    np.save(tmp_path / "tokens.npy", (np.arange(600) % 50).astype("uint16"))
    gqa = "{type: gqa, n_heads: 2, n_kv_heads: 1, head_dim: 8}"
    (tmp_path / "tiny.yml").write_text(MANIFEST.replace(gqa, "{type: falling, n_heads: 2}"))
    ran = site.caramba("run", "tiny.yml", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert json.loads((tmp_path / "runs/tiny/main/first/summary.json").read_text())["mode"] == "train"
    (tmp_path / "tiny.yml").write_text(MANIFEST.replace(gqa, "{type: falling, n_heads: 7}"))
    refused = site.caramba("compile", "tiny.yml", cwd=tmp_path)
    assert refused.code == 2
    place = next(line for line in MANIFEST.splitlines() if gqa in line).index(gqa) + len("{type: falling, n_heads: 7")
    assert refused.err.startswith(f"tiny.yml:11:{place}: error:"), refused.err  # at the 7


def test_environment_variables_are_documented() -> None:
    assert DISABLE_VARIABLE in PAGE.read_text()
    assert f"{TRACE_VARIABLE}=1" in PAGE.read_text()
