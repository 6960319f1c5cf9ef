"""What a manifest means that names no component: each kind's default, and what a bare file name stands for."""

from __future__ import annotations

import inspect
import json
from importlib import import_module

import numpy as np
import pytest
from caramba_plugins_tools.explain import explain
from caramba_plugins_tools.json_schema import manifest_schema

from caramba_core.errors import PluginError
from caramba_core.plugins.registry import registry
from tests.plugins.site import Site
from tests.plugins.test_hooks_in_runs import MANIFEST

SGD = "from caramba_plugins_standard.optimizers import SGD as Mine\n"
DATASET = (
    "from caramba_core.components import component\n"
    "from caramba_plugins_standard.datasets import TokenArray\n"
    "@component\nclass Mine(TokenArray):\n    '''Tokens of another program.'''\n"
)


def add_optimizer(site: Site, name: str) -> None:
    """A distribution whose optimizer is the default."""
    entries = {"caramba.optimizer": {name.rpartition("-")[2]: "mine:Mine", "default": "mine:Mine"}}
    site.add(name, entries=entries, modules={"mine": SGD})


def said_of(kind: str) -> str:
    with pytest.raises(PluginError) as caught:
        registry().default(kind)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [("optimizer", "adamw"), ("schedule", "cosine"), ("head", "linear")])
def test_defaults_of_the_standard_distribution(kind: str, name: str) -> None:
    made = registry().default(kind)
    assert type(made) is registry().load(registry().find((kind,), name))


@pytest.mark.parametrize(
    ("file", "name"),
    [("tokens.npy", "tokens"), ("a/b.txt", "text"), ("tokens", None), ("x.npz", None), ("npy", None), ("", None)],
)
def test_what_a_bare_file_name_stands_for(file: str, name: str | None) -> None:
    entry = registry().for_suffix("dataset", file)
    assert (entry.name if entry else None) == name
    assert registry().for_suffix("optimizer", file) is None


def test_the_longest_suffix_counts(site: Site) -> None:
    names = {"mine": "mine:Mine", "other": "mine:Other", ".toy": "mine:Mine", ".big.toy": "mine:Other"}
    site.add("caramba-plugin-toy", entries={"caramba.dataset": names})
    found = [registry().for_suffix("dataset", name) for name in ("a.toy", "a.big.toy")]
    assert [entry.name for entry in found if entry] == ["mine", "other"]


def test_aliases_are_no_components() -> None:
    """Nothing lists them, suggests them, or takes them for a name."""
    plugins = registry()
    for kind in ("optimizer", "schedule", "head", "dataset"):
        names = [entry.name for entry in plugins.entries(kind)]
        assert not {"default", ".npy", ".txt"} & set(names)
        for name in ("default", "defaul", ".npy", "npy"):
            with pytest.raises(PluginError) as caught:
                plugins.find((kind,), name)
            assert "did you mean" not in str(caught.value)
            assert "'.npy'" not in (caught.value.expected or "")
    assert plugins.name_of(type(plugins.default("optimizer"))) == "adamw"
    schema = json.dumps(manifest_schema(plugins))
    assert '"default"' in schema  # a keyword of JSON Schema
    assert 'standard:default"' not in schema
    assert r"(\\.npy|\\.txt)$" in schema
    with pytest.raises(Exception, match="nothing is called 'default'"):
        explain(plugins, "default")


def test_the_listing_has_no_aliases(site: Site) -> None:
    add_optimizer(site, "caramba-plugin-one")
    data = json.loads(site.caramba("plugins", "list", "--json").out)
    components = {plugin["distribution"]: plugin["components"] for plugin in data["plugins"]}
    assert components["caramba-plugin-one"] == {"optimizer": ["one"]}
    assert components["caramba-plugins-standard"]["dataset"] == ["chats", "mixture", "text", "texts", "tokens"]
    assert data["clashes"] == {}


def test_two_distributions_with_a_default(site: Site) -> None:
    add_optimizer(site, "caramba-plugin-one")
    said = said_of("optimizer")
    assert "the default optimizer is supplied by more than one distribution: caramba-plugin-one 1.0, caramba-pl" in said
    assert "expected: caramba-plugin-one:one or caramba-plugins-standard:adamw" in said
    assert "write one of them in the manifest, or switch one off: --no-plugin caramba-plugin-one or" in said
    np.save(site.folder / "tokens.npy", (np.arange(600) % 50).astype("uint16"))
    (site.folder / "tiny.yml").write_text(MANIFEST)
    ran = site.caramba("compile", "tiny.yml", "--print-plan")
    assert ran.code == 2
    assert "error: the default optimizer is supplied by more than one distribution" in ran.err
    (site.folder / "tiny.yml").write_text(MANIFEST.replace("lr: 1.0e-2", "lr: 1.0e-2, optimizer: one"))
    ran = site.caramba("compile", "tiny.yml", "--print-plan")
    assert ran.code == 0, ran.err
    (site.folder / "tiny.yml").write_text(MANIFEST)
    assert site.caramba("compile", "tiny.yml", "--print-plan", "--no-plugin", "caramba-plugin-one").code == 0


def test_no_default_at_all(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_of("topology")
    assert said.startswith("no installed plugin says which topology is the default\n  expected: topology: in the man")
    assert "pip install" not in said
    catalogue = "CATALOGUE = {'topology': {'ring': 'caramba-plugin-zeta', 'stacked': 'caramba-plugins-standard'}}"
    site.add("caramba-plugin-index", entries={"caramba.catalogue": {"i": "zeta_index:CATALOGUE"}})
    (site.folder / "zeta_index.py").write_text(catalogue)
    registry.cache_clear()
    assert "hint: pip install caramba-plugin-zeta" in said_of("topology")
    monkeypatch.setenv("CARAMBA_DISABLE_PLUGINS", "caramba-plugins-standard")
    registry.cache_clear()
    said = said_of("optimizer")
    assert "the default optimizer cannot be used: caramba-plugins-standard is switched off" in said
    with pytest.raises(PluginError, match=r"the dataset of \.npy files cannot be used: caramba-plugins-standard is s"):
        registry().for_suffix("dataset", "tokens.npy")


def test_a_default_of_a_plugin_for_another_core_does_not_count(site: Site) -> None:
    entries = {"caramba.optimizer": {"old": "old:X", "default": "old:X"}}
    site.add("caramba-plugin-old", entries=entries, requires=["caramba-core>=7"])
    assert type(registry().default("optimizer")).__name__ == "AdamW"


def test_a_default_that_needs_settings(site: Site) -> None:
    entries = {"caramba.router": {"mine": "mine:Mine", "default": "mine:Mine"}}
    text = (
        "from caramba_core.components import component, option\n"
        "from caramba_plugins_standard.fans import Router\n"
        "@component\nclass Mine(Router):\n    '''A router.'''\n    size: int = option(help='a size')\n"
    )
    site.add("caramba-plugin-needy", entries=entries, modules={"mine": text})
    said = said_of("router")
    assert "router caramba-plugin-needy:mine 1.0 is broken: the default router cannot do without settings:" in said
    assert "size" in said


@pytest.mark.parametrize("alias", ["default", ".toy"])
def test_an_alias_of_no_component(site: Site, alias: str) -> None:
    site.add("caramba-plugin-bad", entries={"caramba.dataset": {"mine": "mine:Mine", alias: "mine:Other"}})
    state, (problem,) = registry().state(registry().plugins["caramba-plugin-bad"])
    assert state == "broken"
    assert f"caramba-plugin-bad:{alias} points to mine:Other, which is no dataset" in problem.message
    assert registry().for_suffix("dataset", "a.toy") is None


def test_files_of_another_distribution(site: Site) -> None:
    names = {"mine": "mine:Mine", ".toy": "mine:Mine"}
    site.add("caramba-plugin-toy", entries={"caramba.dataset": names}, modules={"mine": DATASET})
    with (site.folder / "tokens.toy").open("wb") as file:
        np.save(file, (np.arange(600) % 50).astype("uint16"))
    (site.folder / "tiny.yml").write_text(MANIFEST.replace("tokens.npy", "tokens.toy"))
    ran = site.caramba("run", "tiny.yml")
    assert ran.code == 0, ran.err
    site.add("caramba-plugin-two", entries={"caramba.dataset": names})
    ran = site.caramba("compile", "tiny.yml")
    assert ran.code == 2
    assert "tiny.yml:15:19: error: groups.0.data.train: the dataset of .toy files is supplied by more than" in ran.err
    assert "caramba-plugin-toy:mine or caramba-plugin-two:mine" in ran.err


def test_a_layer_has_one_name_in_all_kinds_of_layers(site: Site) -> None:
    names = {"caramba.layer": {"same": "mine:A"}, "caramba.attention": {"same": "mine:B", "fine": "mine:C"}}
    site.add("caramba-plugin-bad", entries=names)
    state, problems = registry().state(registry().plugins["caramba-plugin-bad"])
    assert state == "broken"
    assert "caramba-plugin-bad:same is declared twice: layer mine:A and attention mine:B" in problems[0].message
    assert registry().find(("layer", "attention"), "fine")
    with pytest.raises(PluginError, match="there is no layer or attention 'same'"):
        registry().find(("layer", "attention"), "same")


def test_the_core_names_none_of_them() -> None:
    for module in ("lowering", "manifest.structure", "plan.runs", "modes"):
        source = inspect.getsource(import_module(f"caramba_core.{module}"))
        assert not any(word in source for word in ('"adamw"', '"cosine"', '".npy"', '"linear"')), module
