"""The way from a file's name to a typed manifest.

read -> extends, include -> --set -> groups (extends, matrix) -> --set inside groups -> variables -> structure -> rules

Everything works on the located tree; each step adds what it finds wrong to one list and goes on with a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

import attrs
from caramba_document.overrides import apply, override_name, parse
from caramba_document.problem import ManifestProblem, Path, in_order
from caramba_document.reading import Reading, check_depth
from caramba_document.source import Broken
from caramba_document.suggestions import nearest
from caramba_document.tree import Gap, List, Map, Node, keys_of_sources, merge, plain, problem_at
from caramba_document.variables import Variables, declared, escaped, misspelt

from caramba_core.errors import Faults, ManifestError
from caramba_core.manifest.compose import Composer, check_requires, find_source, is_file_name
from caramba_core.manifest.groups import expand_groups
from caramba_core.manifest.origins import spell_out_models
from caramba_core.manifest.rules import group_faults, rule_faults
from caramba_core.manifest.schema import Manifest
from caramba_core.manifest.structure import Structurer
from caramba_core.plugins.registry import registry

__all__ = ["Loaded", "load_manifest"]


@attrs.frozen(kw_only=True, eq=False)
class Loaded:
    """A manifest that has been read.

    ``folder`` is what relative file names in it are relative to.
    """

    manifest: Manifest
    folder: FilePath
    tree: Map
    """The resolved manifest with the place of every value."""

    @property
    def document(self) -> dict[str, Any]:
        """The resolved manifest as plain data that reads as the same manifest again."""
        document: dict[str, Any] = escaped(plain(self.tree))
        for group in document.get("groups", ()):
            if group.get("model") == document["model"]:
                del group["model"]
        return document

    def resolved_group(self, name: str) -> dict[str, Any]:
        """A resolved manifest with one group of this one, and that group's model, alone."""
        document: dict[str, Any] = escaped(plain(self.tree))
        group = document["groups"][self._index(name)]
        return {**document, "model": group.pop("model"), "groups": [group]}

    def teacher_keys(self, name: str | None = None) -> dict[Path, str]:
        """The key of the teacher's configuration of each value of :attr:`document` that was taken from there.

        With ``name``, the values of :meth:`resolved_group`.
        """
        if name is None:
            return dict(keys_of_sources(self.tree))
        return dict(keys_of_sources(self.tree.items_at("groups")[self._index(name)].get("model"), ("model",)))

    def _index(self, name: str) -> int:
        return [group.name for group in self.manifest.groups].index(name)


def load_manifest(source: str | FilePath, *, overrides: Sequence[str] = (), fetch: bool = False) -> Loaded:
    """Read a manifest's file, or the preset of that name.

    ``overrides`` are texts ``path=value`` as ``--set`` takes them.  What a model is taken from (``model: {from: ...}``)
    must be on this machine, or is brought here with ``fetch``.  Raises :class:`ManifestError` with every problem.
    """
    composer = Composer(Reading(), registry())
    reading = composer.reading
    try:
        loaded = _load(source, overrides, composer, fetch=fetch)
    except Broken as broken:
        reading.problems.insert(0, broken.problem)
    else:
        if loaded is not None and not reading.problems:
            return loaded
    assert reading.problems, "a manifest that cannot be made has a problem"
    found = in_order(reading.problems, [*(source.name for source in composer.sources), *map(override_name, overrides)])
    if reading.left_out:
        found.append(ManifestProblem(file=found[0].file, message=f"and {reading.left_out} problems more"))
    raise ManifestError(tuple(found))


# ------------------------------------------------------------------------------------------------ the steps


def _load(source: str | FilePath, overrides: Sequence[str], composer: Composer, *, fetch: bool) -> Loaded | None:
    """The manifest; what is wrong with it is in the reading's problems."""
    reading, plugins = composer.reading, composer.plugins
    name, here = str(source), FilePath.cwd()
    if isinstance(source, FilePath) and not is_file_name(name):
        name = f"./{name}"
    text = find_source(name, here, plugins)
    folder = (here / name).parent if is_file_name(name) else here
    changes = parse(overrides, reading)
    root = composer.compose(text)
    if not composer.complete:
        return None
    root = apply(root, [change for change in changes if not change.of_groups], reading)
    if any(change.parts[0][0] == "requires" for change in changes):
        reading.report(*check_requires(root.get("requires"), plugins))
    root = expand_groups(root, composer.inherited, reading)
    root = apply(root, [change for change in changes if change.of_groups], reading)
    tree = spell_out_models(_resolved(root, reading), plugins, reading, folder, fetch=fetch)
    check_depth(tree.depth, tree.head)
    data = plain(tree)
    manifest: Manifest | None = None
    try:
        manifest = Structurer(plugins).structure(data, Manifest)
        faults = list(group_faults(manifest))
    except Faults as error:
        faults = list(error.faults)
    faults += rule_faults(data, faults, plugins)
    reading.report(*(problem_at(tree, fault) for fault in faults))
    return None if manifest is None else Loaded(manifest=manifest, folder=folder, tree=tree)


def _resolved(root: Map, reading: Reading) -> Map:
    """The manifest with variables filled in: one model for itself, and one for each group."""
    written = root.get("vars")
    variables = declared(written, reading, ("vars",))
    scope = Variables(variables, reading)
    tree = scope.resolve(root.without("vars", "groups"))
    assert isinstance(tree, Map)
    groups = root.get("groups")
    if isinstance(groups, List):
        items = [_resolved_group(item, index, root, scope, reading) for index, item in enumerate(groups.items)]
        groups = attrs.evolve(groups, items=tuple(items))
    if groups is not None:
        tree = tree.set("groups", scope.resolve(groups), root.entries["groups"].key)
    for item in variables.values():  # a variable that nothing uses is checked all the same
        scope.resolve(item.value)
    if written is None:
        readable = not any(nearest(key, ["vars"]) for key in root.entries)
    else:
        readable = isinstance(written, Map) or plain(written) is None
    if readable:  # else every variable is unknown, for a reason that is reported
        misspelt(variables, reading)
    return tree


def _resolved_group(group: Node, index: int, root: Map, scope: Variables, reading: Reading) -> Node:
    if not isinstance(group, Map):
        return scope.resolve(group)
    own = declared(group.get("vars"), reading, ("groups", index, "vars"))
    for name, item in own.items():
        if name not in scope.variables:
            reading.miss(name, item.key, setting=True)
    if own:
        scope = Variables({**scope.variables, **own}, reading)
    model, own_model = root.entries.get("model"), group.get("model")
    if model is not None and own_model is not None:
        group = group.set("model", merge(model.value, own_model))
    elif model is not None:
        reading.expand(model.value.size if own else 1, model.key)
        group = group.set("model", model.value, model.key)
    elif own_model is None:  # the manifest's missing model is reported once, for the manifest
        group = group.set("model", Gap(group.head))
    return scope.resolve(group.without("vars"))
