"""What a distribution imports, its pyproject names: nothing is there only because another one brought it."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Collection, Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.distributions import CORE, DISTRIBUTIONS, ROOT, Distribution, imports

HOMES = {one.package.name: one.name for one in DISTRIBUTIONS}
INSTALLED = packages_distributions()
COPIED = {"modeling_caramba_dba.py"}
"""Files that are written beside exported weights and run there, with transformers alone."""


def unnamed(files: Iterable[Path], *, own: Collection[str], allowed: Collection[str]) -> list[str]:
    """Imports of what is neither Python's, nor the files' own, nor of a distribution that is allowed."""
    found = []
    for file in files:
        for one in () if file.name in COPIED else imports(file):
            if one.package in own or one.package in sys.stdlib_module_names:
                continue
            owners = [HOMES[one.package]] if one.package in HOMES else INSTALLED.get(one.package, [one.package])
            if not any(canonicalize_name(owner) in allowed for owner in owners):
                found.append(f"{one.place} imports {one.package}")
    return found


@pytest.mark.parametrize("one", DISTRIBUTIONS, ids=lambda one: one.name)
def test_a_distribution_names_what_it_imports(one: Distribution) -> None:
    # Whoever needs the core may use the third-party packages that come with it.
    allowed = one.needs | one.optional | CORE.needs
    assert unnamed(one.package.rglob("*.py"), own={one.package.name}, allowed=allowed) == []


@pytest.mark.parametrize("one", DISTRIBUTIONS[1:], ids=lambda one: one.name)
def test_a_distribution_names_what_its_tests_import(one: Distribution) -> None:
    # The tests beside the core are those of the whole repository.
    files = sorted((one.folder / "tests").rglob("*.py"))
    allowed = one.needs | one.optional | one.for_tests | CORE.needs
    assert unnamed(files, own={one.package.name, *(file.stem for file in files)}, allowed=allowed) == []


def test_contracts_on_imports_hold_every_distribution() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert sorted(contracts["root_packages"]) == sorted(one.package.name for one in DISTRIBUTIONS)
    layers = " | ".join(contracts["contracts"][0]["layers"]).split(" | ")
    assert sorted(layers) == sorted(contracts["root_packages"])
