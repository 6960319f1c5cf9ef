"""Plugins that are broken in every way seen in the wild: what does not need them goes on, and each says what to do."""

from __future__ import annotations

import json
from importlib import import_module

import numpy as np
import pytest

from caramba_core import __version__
from caramba_core.errors import PluginError
from caramba_core.plugins.loading import required_methods
from caramba_core.plugins.registry import registry
from tests.plugins.site import ATTENTION, Site
from tests.plugins.test_hooks_in_runs import MANIFEST

HOOKS = "from caramba_core.hookspecs import hookimpl\n"


def attention(module: str = "bad") -> dict[str, dict[str, str]]:
    return {"caramba.attention": {"bad": f"{module}:Attention"}}


BROKEN_ON_LOAD = {
    "raises": (
        "\n\nraise RuntimeError('no luck')",
        "RuntimeError: no luck (importing bad, ",
        "pip install --upgrade caramba-plugin-bad, or report it to its author; --no-plugin caramba-plugin-bad",
    ),
    "raises somewhere": ("\n\nint('x')", "bad.py:3)", "--no-plugin caramba-plugin-bad"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3", "--no-plugin caramba-plugin-bad"),
    "syntax error": ("def (", "SyntaxError", "--no-plugin caramba-plugin-bad"),
    "needs a module of an extra": (
        "import fancylib",
        "needs the module 'fancylib', which is not installed",
        "pip install 'caramba-plugin-bad[fast]'",
    ),
    "needs a required module": ("import otherlib.part", "needs the module 'otherlib'", "pip install 'otherlib>=2'"),
    "needs an unnamed module": ("import thirdlib", "needs the module 'thirdlib'", "pip install thirdlib"),
    "has no such object": ("x = 1", "bad has no 'Attention'", "pip install --force-reinstall caramba-plugin-bad"),
    "is no class": ("Attention = 3", "bad:Attention is an int, not a class", "report it to its author"),
    "is another class": ("class Attention: pass", "is the class Attention", "report it to its author"),
    "is no component": (
        "from caramba_core.components import Attention as Base\nclass Attention(Base): pass",
        "is not a component expected: the decorator @component",
        "report it to its author",
    ),
    "is of another kind": (
        "from caramba_plugins_standard.layers import Linear as Attention",
        "is the class Linear expected: a class derived from caramba_core.components.Attention",
        "report it to its author",
    ),
    "is gone": (None, "its module bad is not there", "pip uninstall caramba-plugin-bad"),
}


@pytest.mark.parametrize(("text", "message", "hint"), BROKEN_ON_LOAD.values(), ids=BROKEN_ON_LOAD)
def test_component_that_does_not_load(site: Site, text: str | None, message: str, hint: str) -> None:
    site.add(
        "caramba-plugin-bad",
        entries=attention(),
        modules={} if text is None else {"bad": text},
        requires=["fancylib; extra == 'fast'", "otherlib>=2", "caramba-core"],
    )
    entry = registry().find(("attention",), "bad")
    with pytest.raises(PluginError) as caught:
        registry().load(entry)
    said = " ".join(str(caught.value).split())
    assert "caramba-plugin-bad:bad 1.0" in said
    assert message in said
    assert hint in said
    with pytest.raises(PluginError):  # remembered, not tried again
        registry().load(entry)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "loader",
            "def Thing(path): ...",
            "bad:Thing is a function, not a class expected: a class like caramba_plug",
        ),
        ("loader", "class Thing:\n    def open(self): ...", "bad:Thing has no method accepts"),
        ("source", "class Thing:\n    fetch = 3", "bad:Thing has no method fetch"),
        (
            "exporter",
            "class Thing: ...",
            "no method formats expected: a class like caramba_plugins_llama.exporting.Exporter, with",
        ),
        (
            "mode",
            "class Thing: ...",
            "the class Thing expected: a class derived from caramba_core.modes.Run",
        ),
        ("command", "Thing = 'text'", "bad:Thing is a str, not a class expected: a function with typer's annotations"),
        ("preset", "Thing = 'text'", "bad:Thing is not the path of a file"),
    ],
)
def test_component_that_cannot_do_what_its_kind_does(site: Site, kind: str, text: str, message: str) -> None:
    entries = {f"caramba.{kind}": {"bad": "bad:Thing"}}
    site.add("caramba-plugin-bad", entries=entries, modules={"bad": text})
    with pytest.raises(PluginError) as caught:
        registry().load(registry().find((kind,), "bad"))
    said = " ".join(str(caught.value).split())
    assert message in said
    assert "report it to its author" in said


def test_kinds_and_their_bases_name_each_other() -> None:
    for kind in registry().kinds.values():
        if kind.contract is not None:
            module, _, name = kind.contract.partition(":")
            base = getattr(import_module(module), name)
            assert required_methods(base) or base.kind == kind.name


def test_broken_plugin_stops_only_what_needs_it(site: Site) -> None:
    site.add(
        "caramba-plugin-bad",
        entries={**attention(), "caramba": {"bad": "bad"}, "caramba.command": {"broken": "bad:command"}},
        modules={"bad": "print('hello from import')\nraise SystemExit('stop')"},
    )
    listed = site.caramba("plugins", "list", "--json")
    assert listed.code == 0
    plugin = next(p for p in json.loads(listed.out)["plugins"] if p["distribution"] == "caramba-plugin-bad")
    assert plugin["state"] == "ok"  # nothing was imported, nothing is known
    assert plugin["components"] == {"attention": ["bad"], "command": ["broken"]}
    assert site.caramba("--help").code == 0
    assert site.caramba("--version").code == 0

    ran = site.caramba("broken")
    assert ran.code == 2
    assert "command caramba-plugin-bad:broken 1.0 is broken: SystemExit: stop" in ran.said
    assert ran.out == ""  # what a plugin prints goes to stderr

    checked = site.check("caramba-plugin-bad")
    assert checked.code == 2
    assert "3 broken" in checked.out
    after = json.loads(site.caramba("plugins", "list", "--json").out)
    states = {p["distribution"]: p for p in after["plugins"]}
    assert states["caramba-plugin-bad"]["state"] == "broken"
    problem = states["caramba-plugin-bad"]["problems"][0]
    assert "SystemExit: stop" in problem["message"]
    assert problem["hint"].startswith("pip install --upgrade caramba-plugin-bad, or report it to its author")
    assert problem["hint"].endswith("; caramba plugins check caramba-plugin-bad tries it again")
    assert checked.err.count("SystemExit") == 0  # said once, in the output that was asked for
    assert states["caramba-plugins-standard"]["state"] == "ok"

    (site.folder / "bad.py").write_text(ATTENTION + "def command(): pass\n")
    assert site.check("caramba-plugin-bad").code == 0
    assert '"broken",' not in site.caramba("plugins", "list", "--json").out


BAD_HOOKS = {
    "wrong arguments": (
        HOOKS + "@hookimpl\ndef step_finished(step, loss): pass",
        "its hook 'step_finished' takes the argument 'loss' expected: any of context, step, metrics",
        "docs/plugins.md",
    ),
    "misspelt argument": (
        HOOKS + "@hookimpl\ndef step_finished(contxt): pass",
        "its hook 'step_finished' takes the argument 'contxt'",
        "did you mean 'context'?",
    ),
    "misspelt": (
        HOOKS + "@hookimpl\ndef step_finnished(step): pass",
        "implements 'step_finnished', which is no hook",
        "did you mean 'step_finished'?",
    ),
    "a wrapper": (HOOKS + "@hookimpl(wrapper=True)\ndef run_started(context): yield", "is a hook wrapper", "tryfirst"),
    "raises on import": ("1 / 0", "ZeroDivisionError: division by zero", "--no-plugin caramba-plugin-bad"),
}


@pytest.mark.parametrize(("text", "message", "hint"), BAD_HOOKS.values(), ids=BAD_HOOKS)
def test_hook_module_that_does_not_register(site: Site, text: str, message: str, hint: str) -> None:
    site.add("caramba-plugin-bad", entries={"caramba": {"bad": "bad_hooks"}, **attention("good")})
    (site.folder / "bad_hooks.py").write_text(text)
    (site.folder / "good.py").write_text(ATTENTION)
    program = (
        "from caramba_core.plugins.registry import registry\n"
        "registry().hooks.run_finished(context=None, summary={})\n"
        "registry().load(registry().find(('attention',), 'bad'))\n"
    )
    ran = site.python(program)
    assert "warning: plugin caramba-plugin-bad takes no part" in ran.said
    assert message in ran.said
    assert hint in ran.said
    assert "PluginError: attention caramba-plugin-bad:bad cannot be used" in ran.said
    # what does not need the plugin goes on
    ran = site.python(program.replace("'bad'", "'gqa'"))
    assert ran.code == 0


def test_two_distributions_claim_one_name(site: Site) -> None:
    for name in ("caramba-plugin-one", "caramba-plugin-two"):
        site.add(name, entries={"caramba.attention": {"swish": f"{name.replace('-', '_')}:Attention"}})
        (site.folder / f"{name.replace('-', '_')}.py").write_text(ATTENTION)
    with pytest.raises(PluginError) as caught:
        registry().find(("layer", "attention", "topology"), "swish")
    said = str(caught.value)
    assert "more than one distribution: caramba-plugin-one 1.0, caramba-plugin-two 1.0" in said
    assert "caramba-plugin-one:swish or caramba-plugin-two:swish" in said
    assert "--no-plugin caramba-plugin-two" in said
    entry = registry().find(("attention",), "caramba-plugin-two:swish")
    assert registry().load(entry).__module__ == "caramba_plugin_two"
    listed = site.caramba("plugins", "list")
    assert (
        "attention swish is supplied more than once; write caramba-plugin-one:swish or caramba-plugin-two:swish"
        in listed.said
    )
    # switching one off settles it
    data = json.loads(site.caramba("--no-plugin", "caramba-plugin-one", "plugins", "list", "--json").out)
    assert data["clashes"] == {}


def test_component_and_command_named_like_others(site: Site) -> None:
    site.add(
        "caramba-plugin-mimic", entries={"caramba.mode": {"train": "mimic:X"}, "caramba.command": {"run": "mimic:f"}}
    )
    with pytest.raises(PluginError, match="caramba-plugin-mimic:train or caramba-plugins-standard:train"):
        registry().find(("mode",), "train")
    helped = site.caramba("--help")
    assert "caramba-plugin-mimic:run" in helped.out
    (site.folder / "mimic.py").write_text("")
    (site.folder / "m.yml").write_text(MANIFEST)
    ran = site.caramba("compile", "m.yml")
    assert ran.code == 2
    assert "m.yml:19:15: error: groups.0.runs.0.mode: the mode 'train' is supplied by more than one" in ran.err
    assert "caramba-plugin-mimic:train or caramba-plugins-standard:train" in ran.err
    assert "switch one off: --no-plugin caramba-plugin-mimic or --no-plugin caramba-plugins-standard\n" in ran.err
    (site.folder / "m.yml").write_text(MANIFEST.replace("mode: train", "mode: caramba-plugins-standard:train"))
    np.save(site.folder / "tokens.npy", (np.arange(600) % 50).astype("uint16"))
    ran = site.caramba("run", "m.yml")
    assert ran.code == 0, ran.err
    assert "Run a manifest" in helped.out


def test_distribution_named_like_the_core(site: Site) -> None:
    """It is left out and named; what runs is the real one."""
    site.add("Caramba.Core", entries={"caramba.attention": {"fake": "fake:X"}}, version="9.0")
    data = json.loads(site.caramba("plugins", "list", "--json").out)
    (core,) = (plugin for plugin in data["plugins"] if plugin["distribution"] == "caramba-core")
    assert core["version"] == __version__
    assert core["components"] == {}
    (problem,) = core["problems"]
    assert f"{site.folder} holds another distribution that calls itself caramba-core, version 9.0" in problem["message"]
    assert "pip uninstall caramba-core" in problem["hint"]
    assert registry().plugins["caramba-core"].version == __version__


@pytest.mark.parametrize(
    ("requires", "entries", "message"),
    [
        (["caramba-core>=0.5,<0.6"], {}, f"requires caramba-core >=0.5,<0.6, but caramba-core {__version__}"),
        (["caramba_core (==7.*)"], {}, f"requires caramba-core ==7.*, but caramba-core {__version__}"),
        (["caramba-core>>1"], {}, "which is no version range"),
        ([], {"caramba.api": {"2.0": "bad"}}, "was written for version 2.0 of the plugin API, but caramba-core"),
    ],
)
def test_made_for_another_core(
    site: Site, requires: list[str], entries: dict[str, dict[str, str]], message: str
) -> None:
    site.add(
        "caramba-plugin-bad",
        entries={**attention(), "caramba": {"bad": "bad"}, **entries},
        modules={"bad": "raise RuntimeError('must not be imported')"},
        requires=requires,
    )
    data = json.loads(site.caramba("plugins", "list", "--json").out)
    plugin = next(p for p in data["plugins"] if p["distribution"] == "caramba-plugin-bad")
    assert plugin["state"] == "incompatible"
    assert message in plugin["problems"][0]["message"]
    assert "pip install --upgrade caramba-plugin-bad" in plugin["problems"][0]["hint"]
    with pytest.raises(PluginError) as caught:
        registry().find(("attention",), "bad")
    assert message in str(caught.value)
    with pytest.raises(PluginError, match="the manifest requires"):
        registry().require("caramba-plugin-bad")


def test_a_newer_minor_api_and_an_unstated_one_are_fine(site: Site) -> None:
    site.add("caramba-plugin-new", entries={**attention(), "caramba.api": {"1.7": "bad"}}, modules={"bad": ATTENTION})
    site.add("caramba-plugin-old", entries={"caramba.layer": {"old": "old:X"}}, requires=[])
    states = {name: registry().state(plugin)[0] for name, plugin in registry().plugins.items()}
    assert states["caramba-plugin-new"] == states["caramba-plugin-old"] == "ok"


def test_half_uninstalled(site: Site) -> None:
    info = site.add("caramba-plugin-bad", entries=attention())
    (info / "METADATA").unlink()
    listed = site.caramba("plugins", "list")
    assert listed.code == 0
    assert "the metadata of caramba-plugin-bad has no name or version: it is half uninstalled" in listed.said
    assert f"delete the folder {info}" in listed.said
    with pytest.raises(PluginError, match="half uninstalled"):
        registry().find(("attention",), "bad")


def test_stale_metadata(site: Site) -> None:
    site.add("caramba-plugin-bad", entries=attention(), version="1.0")
    site.add("caramba-plugin-bad", entries=attention(), version="1.1")
    listed = site.caramba("plugins", "list")
    assert listed.said.count("has metadata of several versions side by side") == 1
    assert "pip uninstall caramba-plugin-bad" in listed.said
    with pytest.raises(PluginError, match=r"cannot be used: .*several versions side by side: 1\.[01] and 1\.[01]"):
        registry().find(("attention",), "bad")


def test_unreadable_metadata(site: Site) -> None:
    info = site.add("caramba-plugin-bad", entries=attention())
    (info / "METADATA").write_bytes(b"Name: \xff\xfe")
    other = site.add("other", entries={})
    (other / "entry_points.txt").write_bytes(b"[console_scripts]\n\xff = x")
    (site.folder / "empty-1.dist-info").mkdir()
    listed = site.caramba("plugins", "list")
    assert listed.code == 0
    assert "caramba-plugin-bad" in listed.out


@pytest.mark.parametrize("name", ["two words", "-dash", "col:on", "trailing.", "ünïcode"])
def test_names_that_no_manifest_can_say(site: Site, name: str) -> None:
    site.add("caramba-plugin-bad", entries={"caramba.attention": {name: "bad:X", "fine.Name-2": "bad:X"}})
    plugin = registry().plugins["caramba-plugin-bad"]
    assert [entry.name for entry in plugin.components] == ["fine.Name-2"]
    state, problems = registry().state(plugin)
    assert state == "broken"
    assert repr(name) in problems[0].message
    assert "letters, digits" in problems[0].hint


@pytest.mark.parametrize("value", ["", "bad", "bad:", ":X", "bad module:X", "../bad:X", "bad:X:Y"])
def test_entry_point_that_is_no_import_path(site: Site, value: str) -> None:
    site.add("caramba-plugin-bad", entries={"caramba.attention": {"bad": value}})
    state, problems = registry().state(registry().plugins["caramba-plugin-bad"])
    assert state == "broken"
    assert "which is not an import path" in problems[0].message
    with pytest.raises(PluginError, match="there is no attention 'bad'"):
        registry().find(("attention",), "bad")


def test_unknown_group(site: Site) -> None:
    site.add("caramba-plugin-bad", entries={"caramba.atention": {"bad": "bad:X"}})
    (problem,) = registry().state(registry().plugins["caramba-plugin-bad"])[1]
    assert "in the group caramba.atention, which is no kind" in problem.message
    assert problem.hint == "did you mean caramba.attention?"


def test_distribution_with_capitals_and_dots(site: Site) -> None:
    site.add("Caramba.Plugin_Odd", entries=attention(), modules={"bad": ATTENTION})
    entry = registry().find(("attention",), "Caramba_plugin.odd:bad")
    assert entry.qualified == "caramba-plugin-odd:bad"
    assert site.caramba("plugins", "show", "caramba-plugin-ODD").code == 0


def test_switched_off_plugin_that_is_needed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("caramba-plugin-bad", entries=attention(), modules={"bad": ATTENTION})
    monkeypatch.setenv("CARAMBA_DISABLE_PLUGINS", "other, Caramba_Plugin_Bad")
    registry.cache_clear()
    with pytest.raises(PluginError) as caught:
        registry().find(("attention",), "bad")
    assert "caramba-plugin-bad is switched off" in str(caught.value)
    assert "CARAMBA_DISABLE_PLUGINS" in str(caught.value)
    with pytest.raises(PluginError, match="is switched off"):
        registry().require("caramba-plugin-bad>=1")
    assert registry().state(registry().plugins["caramba-plugin-bad"])[0] == "disabled"


def test_no_plugin_of_an_unknown_name(site: Site) -> None:
    ran = site.caramba("plugins", "list", "--no-plugin", "caramba-plugins-sandard")
    assert ran.code == 2
    assert "did you mean 'caramba-plugins-standard'?" in ran.err
    assert site.caramba("plugins", "list", "--no-plugin").code == 2
    assert "cannot be switched off" in site.caramba("--no-plugin=caramba-core", "plugins", "list").err


def test_missing_plugin_names_its_distribution(site: Site) -> None:
    catalogue = "CATALOGUE = {'attention': {'zeta_mixer': 'caramba-plugin-zeta'}}"
    site.add("caramba-plugin-index", entries={"caramba.catalogue": {"index": "zeta_index:CATALOGUE"}})
    (site.folder / "zeta_index.py").write_text(catalogue)
    with pytest.raises(PluginError) as caught:
        registry().find(("attention",), "zeta_mixer")
    assert "it is supplied by caramba-plugin-zeta, which is not installed: pip install caramba-plugin-zeta" in str(
        caught.value
    )
    with pytest.raises(PluginError, match="pip install 'caramba-plugin-zeta>=2'"):
        registry().require("caramba-plugin-zeta>=2")
    with pytest.raises(PluginError, match=r"caramba-plugin-index 1\.0 is installed"):
        registry().require("caramba-plugin-index<1")
    with pytest.raises(PluginError, match="names no distribution"):
        registry().require("not a requirement!")
    registry().require("caramba-plugin-index>=0.9,<2")
    registry().require('caramba-plugin-zeta>=2; python_version < "3"')  # for other environments than this one
    with pytest.raises(PluginError, match="which is not installed"):
        registry().require('caramba-plugin-zeta>=2; python_version >= "3"')
    with pytest.raises(PluginError, match="names no distribution"):
        registry().require("caramba-plugin-zeta; python_version << 3")
    registry().require("attrs")
