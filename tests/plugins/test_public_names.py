"""``docs/public.md``: what may be imported is written there, and no distribution imports anything else of another."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from caramba_core.kinds import Kind
from caramba_core.plugins.registry import registry
from scripts.public_names import COMMANDS, PAGE, PLUGINS, listed
from tests.distributions import CORE, DISTRIBUTIONS, ROOT, Distribution, Import, imports, project
from tests.plugins.test_docs import EXAMPLE, files

GUIDE = ROOT / "docs" / "plugins.md"
LISTED = listed(PAGE.read_text())
FOR_PLUGINS = {module for (_, section), modules in LISTED.items() if section != COMMANDS for module in modules}
PUBLIC = {module for modules in LISTED.values() for module in modules}
HOMES = {one.package.name: one for one in DISTRIBUTIONS}
OBJECT = re.compile(r"(caramba\w*(?:\.\w+)*):(\w+)")


def has_commands(one: Distribution) -> bool:
    """Whether it is made for commands and tools rather than for models: it has a command, or is the kit or the API."""
    points = project(one.folder / "pyproject.toml").get("entry-points", {})
    return "caramba.command" in points or one.name in ("caramba", "caramba-plugins-testing")


def foreign(file: Path, package: str) -> Iterator[Import]:
    """What a file of a package imports of another one of ours; import paths in strings count."""
    yield from (one for one in imports(file) if one.package in HOMES and one.package != package)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (found := OBJECT.fullmatch(node.value)):
            one = Import(place=f"{file}:{node.lineno}", module=found[1], name=found[2])
            if one.package in HOMES and one.package != package:
                yield one


def private(one: Import, public: set[str]) -> bool:
    """Whether an import is of something that is not public."""
    if f"{one.module}.{one.name}" in public:
        return False
    return one.module not in public or one.name not in import_module(one.module).__all__


@pytest.mark.parametrize("one", DISTRIBUTIONS, ids=lambda one: one.name)
def test_a_distribution_imports_public_names_only(one: Distribution) -> None:
    public = PUBLIC if has_commands(one) else FOR_PLUGINS
    found = [
        f"{what.place}: {what.module}:{what.name}"
        for file in sorted(one.package.rglob("*.py"))
        for what in foreign(file, one.package.name)
        if private(what, public)
    ]
    assert found == [], "\n".join(found)


def test_the_example_the_tutorial_and_the_scaffolds_need_what_is_for_plugins_only(tmp_path: Path) -> None:
    templates = (ROOT / "plugins" / "caramba_plugins_tools").rglob("*.py.template")
    texts = [file.read_text() for file in EXAMPLE.rglob("*.py")]
    texts += [text for name, text in files().items() if name.endswith(".py")]
    texts += [re.sub(r"\$\{(\w+)\}", r"\1", file.read_text()) for file in templates]
    for number, text in enumerate(texts):
        (file := tmp_path / f"{number}.py").write_text(text)
        for what in foreign(file, "caramba_plugin_example"):
            assert not private(what, FOR_PLUGINS), f"{what.module}:{what.name} in\n{text}"


def test_the_page_is_of_these_distributions() -> None:
    assert {distribution for distribution, _ in LISTED} <= {one.name for one in DISTRIBUTIONS}
    for (distribution, _), modules in LISTED.items():
        assert {HOMES[module.partition(".")[0]].name for module in modules} == {distribution}
    assert "(public.md)" in GUIDE.read_text()


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_public_names_say_what_they_are_for(module: str) -> None:
    for name in import_module(module).__all__:
        named = getattr(import_module(module), name)
        if inspect.isclass(named) or inspect.isfunction(named):
            assert (named.__doc__ or "").strip(), f"{module}.{name}"


@pytest.mark.parametrize("kind", registry().kinds.values(), ids=lambda kind: kind.name)
def test_what_entries_of_a_kind_follow_is_public(kind: Kind) -> None:
    if kind.contract is not None:
        module, _, name = kind.contract.partition(":")
        assert module in FOR_PLUGINS
        assert name in import_module(module).__all__


def test_what_authors_read_is_short() -> None:
    lines = 0
    for module in LISTED[CORE.name, PLUGINS]:
        lines += len(Path(import_module(module).__file__ or "").read_text().splitlines())
    assert lines <= 3600
