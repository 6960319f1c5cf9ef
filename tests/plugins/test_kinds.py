"""Kinds that a distribution declares, and components that others supply of them."""

from __future__ import annotations

import json
from importlib import import_module

import pytest

from caramba_core.errors import PluginError
from caramba_core.manifest.structure import Structurer
from caramba_core.plugins.registry import registry
from tests.plugins.site import Site

KIND = """
from typing import ClassVar
from caramba_core.components import Component, component

@component
class Pruner(Component):
    '''What cuts weights.'''
    kind: ClassVar[str] = "pruner"
    builds: ClassVar[str] = ""
"""
PRUNERS = """
from caramba_core.components import component, option
from made_kind import Pruner

@component
class Small(Pruner):
    '''The smallest ones.'''
    share: float = option(default=0.5, help="how many")

class Wrong:
    pass
"""


@pytest.fixture
def pruners(site: Site) -> Site:
    site.add(
        "caramba-plugin-user",
        entries={"caramba.pruner": {"small": "made_pruners:Small", "wrong": "made_pruners:Wrong"}},
        modules={"made_pruners": PRUNERS},
    )
    return site


def declare(site: Site, name: str = "caramba-plugin-kind") -> None:
    site.add(name, entries={"caramba.kind": {"pruner": "made_kind:Pruner"}}, modules={"made_kind": KIND})


def test_components_of_a_declared_kind_are_found_checked_and_structured(pruners: Site) -> None:
    declare(pruners)
    plugins = registry()
    small = plugins.load(plugins.find(("pruner",), "small"))
    with pytest.raises(PluginError, match=r"(?s)made_pruners:Wrong.*a class derived from made_kind\.Pruner"):
        plugins.load(plugins.find(("pruner",), "wrong"))
    base = import_module("made_kind").Pruner
    structurer = Structurer(plugins)
    assert structurer.structure("small", base) == small()
    assert structurer.structure({"type": "caramba-plugin-user:small", "share": 0.1}, base) == small(share=0.1)
    listed = json.loads(pruners.caramba("plugins", "list", "--json").out)["plugins"]
    (user,) = (plugin for plugin in listed if plugin["distribution"] == "caramba-plugin-user")
    assert user["components"] == {"pruner": ["small", "wrong"]}


def test_a_kind_that_nobody_declares_is_a_fault_of_who_uses_it(pruners: Site) -> None:
    (problem,) = registry().plugins["caramba-plugin-user"].notes
    assert problem.message == "caramba-plugin-user has entry points in the group caramba.pruner, which is no kind"


def test_a_kind_belongs_to_the_first_who_declares_it(pruners: Site) -> None:
    declare(pruners)
    declare(pruners, "caramba-plugin-other")
    pruners.add("caramba-plugin-bold", entries={"caramba.kind": {"attention": "made_kind:Pruner"}})
    plugins = registry()
    assert plugins.kinds["attention"].contract == "caramba_core.components:Attention"
    assert plugins.plugins["caramba-plugin-bold"].notes
    first, second = plugins.plugins["caramba-plugin-kind"], plugins.plugins["caramba-plugin-other"]
    assert second.notes and not first.notes  # in the order of names
