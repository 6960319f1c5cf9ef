"""What a listing reads, and what it must not import."""

from __future__ import annotations

import json

import pytest

from caramba_core.plugins.registry import registry
from tests.plugins.site import ATTENTION, CORE_RANGE, Site

HEAVY = ("torch", "numpy", "yaml")


@pytest.mark.parametrize(
    "arguments",
    [("plugins", "list"), ("plugins", "list", "--json"), ("presets", "list"), ("--help",), ("plugins", "--help")],
    ids=" ".join,
)
def test_listings_import_no_plugin_and_nothing_heavy(site: Site, arguments: tuple[str, ...]) -> None:
    site.add(
        "caramba-plugin-trap",
        entries={"caramba": {"trap": "trap"}, "caramba.attention": {"trap": "trap:Attention"}},
        modules={"trap": "raise RuntimeError('imported')"},
    )
    program = (
        "import sys\nfrom caramba_core.cli import main\n"
        f"try:\n    main({list(arguments)!r})\nexcept SystemExit as ended:\n    assert not ended.code, ended.code\n"
        f"found = {{'trap', *{HEAVY!r}}} & set(sys.modules)\n"
        "own = {'caramba_plugins_tools', 'caramba_plugins_tools.commands'}  # whose command it is\n"
        "plugins = {name for name in sys.modules if name.startswith('caramba_plugins')} - own\n"
        "assert not found and not plugins, (found, plugins)"
    )
    ran = site.python(program)
    assert ran.code == 0, ran.err


def test_listing_tells_everything(site: Site) -> None:
    site.add(
        "caramba-plugin-rich",
        entries={
            "caramba": {"rich": "rich_plugin"},
            "caramba.api": {"1.0": "rich_plugin"},
            "caramba.attention": {"zeta": "rich_plugin:Attention"},
            "caramba.layer": {"beta": "rich_plugin:Attention", "alpha": "rich_plugin:Attention"},
        },
    )
    text = site.caramba("plugins", "list").out
    assert f"caramba-plugin-rich 1.0  ok  (API 1.0, core {CORE_RANGE})" in text
    data = json.loads(site.caramba("plugins", "list", "--json").out)
    assert data["core"] == {"version": data["plugins"][0]["version"], "api": "1.0"}
    assert data["plugins"][0]["distribution"] == "caramba-core"
    (plugin,) = (p for p in data["plugins"] if p["distribution"] == "caramba-plugin-rich")
    assert plugin == {
        "distribution": "caramba-plugin-rich",
        "version": "1.0",
        "api": "1.0",
        "requires_core": CORE_RANGE,
        "state": "ok",
        "problems": [],
        "components": {"layer": ["alpha", "beta"], "attention": ["zeta"]},
    }


def test_two_hundred_plugins_are_listed(site: Site) -> None:
    for number in range(200):
        name = f"caramba-plugin-many-{number}"
        entries = {"caramba": {f"many{number}": f"many{number}"}, "caramba.attention": {f"many{number}": "many:X"}}
        site.add(name, entries=entries)
    data = json.loads(site.caramba("plugins", "list", "--json").out)
    assert sum(plugin["distribution"].startswith("caramba-plugin-many-") for plugin in data["plugins"]) == 200
    assert {plugin["state"] for plugin in data["plugins"] if "many" in plugin["distribution"]} == {"ok"}


def test_show(site: Site) -> None:
    hooks = (
        "from caramba_core.hookspecs import hookimpl\n"
        "@hookimpl\n"
        "def run_started(context): pass\n"
        "@hookimpl(specname='run_failed')\n"
        "def too_bad(context, error): pass\n"
    )
    info = site.add(
        "caramba-plugin-shown",
        entries={"caramba": {"shown": "shown_plugin"}, "caramba.attention": {"zeta": "shown_plugin:Attention"}},
        modules={"shown_plugin": hooks + ATTENTION},
        requires=["nowhere-to-be-found>=1; extra == 'fast'", "attrs; extra == 'plain'", "attrs"],
    )
    about = "Summary: Shows.\nProject-URL: documentation, https://example.org\n"
    about += "".join(f"Provides-Extra: {extra}\n" for extra in ("fast", "plain", "all"))
    about += "Requires-Dist: caramba-plugin-shown[fast]; extra == 'all'\n"
    (info / "METADATA").write_text(about + (info / "METADATA").read_text())
    for name in ("shown", "caramba-plugin-shown", "Caramba_Plugin.Shown"):
        said = site.caramba("plugins", "show", name).said
        assert "Shows. documentation: https://example.org" in said
        assert "extra fast: missing nowhere-to-be-found: pip install 'caramba-plugin-shown[fast]'" in said
        assert "extra plain: installed" in said
        assert "extra all" not in said  # it names others, which speak for themselves
        assert "hooks: run_started, run_failed" in said
        assert "zeta attention caramba-plugin-shown 1.0 An attention." in said
        assert "n_heads integer 1 >= 1 heads" in said
    unknown = site.caramba("plugins", "show", "shwn")
    assert unknown.code == 2
    assert "no plugin 'shwn' is installed" in unknown.err


def test_check_names_hooks_and_who_imports_torch(site: Site) -> None:
    """Though modes, which may, come with the core, which comes first."""
    site.add(
        "caramba-plugin-heavy",
        entries={"caramba": {"heavy": "heavy_hooks"}, "caramba.attention": {"heavy": "heavy:Attention"}},
        modules={
            "heavy": "import torch\n" + ATTENTION,
            "heavy_hooks": "from caramba_core.hookspecs import hookimpl\n@hookimpl\ndef run_started(): pass\n",
        },
    )
    checked = site.check()
    assert checked.code == 0
    (slow,) = [line for line in checked.out.splitlines() if "imports torch" in line]
    assert "attention heavy: " in slow
    assert "ok hooks heavy: run_started" in checked.said


def test_presets(site: Site) -> None:
    site.add(
        "caramba-plugin-carrier",
        entries={"caramba.preset": {"tiny": "carrier:tiny", "lost": "carrier:lost"}},
        modules={
            "carrier": "from pathlib import Path\n"
            "tiny = Path(__file__).with_name('tiny.yml')\nlost = Path('nowhere.yml')"
        },
    )
    (site.folder / "tiny.yml").write_text("version: 1\n")
    assert "tiny caramba-plugin-carrier 1.0" in site.caramba("presets", "list").said
    listed = json.loads(site.caramba("presets", "list", "--json").out)["presets"]
    assert {"name": "tiny", "distribution": "caramba-plugin-carrier", "version": "1.0"} in listed
    assert site.caramba("presets", "show", "tiny").out == "version: 1\n"
    assert site.caramba("presets", "show", "caramba-plugin-carrier:tiny", "--path").out.strip().endswith("tiny.yml")
    lost = site.caramba("presets", "show", "lost")
    assert lost.code == 2
    assert "is not the path of a file" in lost.err


def test_entries_are_sorted_and_found_by_every_name(site: Site) -> None:
    site.add("caramba-plugin-b", entries={"caramba.schedule": {"same": "b:X", "zz": "b:X"}})
    site.add("caramba-plugin-a", entries={"caramba.schedule": {"same": "a:X"}})
    names = [
        entry.qualified for entry in registry().entries("schedule") if entry.distribution.startswith("caramba-plugin-")
    ]
    assert names == ["caramba-plugin-a:same", "caramba-plugin-b:same", "caramba-plugin-b:zz"]
    assert registry().find(("optimizer", "schedule"), "zz").distribution == "caramba-plugin-b"


def test_the_kit_costs_a_pytest_run_nothing_until_it_is_asked_for(site: Site) -> None:
    program = (
        "import sys, caramba_plugins_testing.pytest_plugin\n"
        f"assert not {{*{HEAVY!r}, 'attrs'}} & (set(sys.modules) - before), sys.modules\n"
        "from caramba_plugins_testing import Case\n"
        f"assert not set({HEAVY!r}) & set(sys.modules)"
    )
    ran = site.python("import sys, pytest\nbefore = set(sys.modules)\n" + program)
    assert ran.code == 0, ran.err
