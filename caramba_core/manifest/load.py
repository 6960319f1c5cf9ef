"""The way from a file's name to a typed manifest.

read -> extends, include -> --set -> groups (extends, matrix) -> --set inside groups -> variables -> structure -> rules

Everything works on the located tree; each step adds what it finds wrong to one list and goes on with a gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path as FilePath
from typing import Any

import attrs

from caramba_core.errors import ManifestError
from caramba_core.manifest.compose import Composer, check_requires
from caramba_core.manifest.faults import Fault, Faults
from caramba_core.manifest.groups import expand_groups
from caramba_core.manifest.model import structure_model
from caramba_core.manifest.names import nearest
from caramba_core.manifest.overrides import apply, override_name, parse
from caramba_core.manifest.presets import find_source, is_file_name
from caramba_core.manifest.problem import Path, Problem
from caramba_core.manifest.reading import Reading
from caramba_core.manifest.rules import group_faults, rule_faults
from caramba_core.manifest.schema import Manifest
from caramba_core.manifest.source import Broken
from caramba_core.manifest.structure import Structurer
from caramba_core.manifest.tree import (
    MAX_DEPTH,
    Entry,
    Gap,
    List,
    Map,
    Node,
    Scalar,
    find,
    list_of,
    map_of,
    merge,
    plain,
    replaced_at,
)
from caramba_core.manifest.variables import Mentions, Scope, declared
from caramba_core.plugins.registry import registry

__all__ = ["Loaded", "load_manifest", "structure_model"]


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
        document: dict[str, Any] = _escaped(plain(self.tree))
        for group in document.get("groups", ()):
            if group.get("model") == document["model"]:
                del group["model"]
        return document

    def resolved_group(self, name: str) -> dict[str, Any]:
        """A resolved manifest with one group of this one, and that group's model, alone."""
        document: dict[str, Any] = _escaped(plain(self.tree))
        group = next(group for group in document["groups"] if group["name"] == name)
        model = group.pop("model")
        return {**document, "model": model, "groups": [group]}

    def teacher_keys(self, name: str | None = None) -> dict[Path, str]:
        """The key of the teacher's configuration of each value of :attr:`document` that was taken from there.

        With ``name``, the values of :meth:`resolved_group`.
        """
        found = dict(_keys(self.tree, ()))
        if name is None:
            return found
        names = [group["name"] for group in plain(self.tree)["groups"]]
        start: Path = ("groups", names.index(name), "model")
        return {("model", *path[3:]): key for path, key in found.items() if path[:3] == start}

    def problem_at(self, path: Path, message: str, *, expected: str | None = None, hint: str | None = None) -> Problem:
        """A problem with the value at a path of the resolved manifest, where its user wrote it."""
        return _problem(self.tree, Fault(path=path, message=message, expected=expected, hint=hint))


def _keys(node: Node, path: Path) -> Iterator[tuple[Path, str]]:
    """Every value of a tree that came from a teacher's configuration, with its key there."""
    if isinstance(node, Scalar) and node.span.source.key is not None:
        yield path, node.span.source.key
    elif isinstance(node, Map):
        for name, entry in node.entries.items():
            yield from _keys(entry.value, (*path, name))
    elif isinstance(node, List):
        for index, item in enumerate(node.items):
            yield from _keys(item, (*path, index))


def load_manifest(source: str | FilePath, *, overrides: Sequence[str] = (), fetch: bool = False) -> Loaded:
    """Read a manifest's file, or the preset of that name.

    ``overrides`` are texts ``path=value`` as ``--set`` takes them.  A teacher that a model is taken from
    (``model: {from: teacher}``) must be on this machine, or is brought here with ``fetch``.  Raises
    :class:`ManifestError` with every problem.
    """
    composer = Composer(Reading())
    try:
        return _load(source, overrides, composer, fetch=fetch)
    except Broken as broken:
        composer.reading.problems.insert(0, broken.problem)
    raise ManifestError(_in_order(composer, overrides))


# ------------------------------------------------------------------------------------------------ the steps


def _load(source: str | FilePath, overrides: Sequence[str], composer: Composer, *, fetch: bool) -> Loaded:
    reading, mentions = composer.reading, Mentions()
    problems = reading.problems
    text, folder = _main_source(source)
    changes = parse(overrides, reading)
    root = composer.compose(text)
    if not composer.complete:
        raise ManifestError(_in_order(composer, overrides))
    root = apply(root, [change for change in changes if not change.of_groups], problems)
    if any(change.parts[0][0] == "requires" for change in changes) and "requires" in root.entries:
        problems.extend(check_requires(root.entries["requires"].value))
    root = expand_groups(root, composer.inherited, reading=reading, mentions=mentions)
    root = apply(root, [change for change in changes if change.of_groups], problems)
    tree = _with_teachers(_resolved(root, reading, mentions), folder, problems, fetch=fetch)
    if tree.depth > MAX_DEPTH:
        raise Broken(
            tree.head.problem(f"lists and mappings nest more than {MAX_DEPTH} deep once variables are filled in")
        )
    manifest, faults = _structured(plain(tree))
    problems.extend(_problem(tree, fault) for fault in faults)
    if problems or manifest is None:
        assert problems, "a manifest that cannot be made has a problem"
        raise ManifestError(_in_order(composer, overrides))
    return Loaded(manifest=manifest, folder=folder, tree=tree)


def _main_source(source: str | FilePath) -> tuple[Any, FilePath]:
    """The text of a file or preset, and what its relative file names are relative to."""
    name = str(source)
    here = FilePath.cwd()
    if not isinstance(source, FilePath) and not is_file_name(name):
        return find_source(name, here), here
    if isinstance(source, FilePath) and not is_file_name(name):
        name = f"./{name}"
    try:
        return find_source(name, here), (here / name).parent
    except Broken as broken:
        stem = FilePath(name).stem
        near = nearest(stem, [entry.name for entry in registry().entries("preset")])
        if broken.problem.message == "there is no such file" and near:
            hint = f"a preset is named without a suffix: {near[0]}"
            raise Broken(attrs.evolve(broken.problem, hint=hint)) from None
        raise


def _resolved(root: Map, reading: Reading, mentions: Mentions) -> Map:
    """The manifest with variables filled in: one model for itself, and one for each group."""
    vars_entry = root.entries.get("vars")
    variables = declared(None if vars_entry is None else vars_entry.value, reading.problems, ("vars",))
    base = Scope(variables, reading=reading, mentions=mentions)
    entries = {
        key: Entry(entry.key, base.resolve(entry.value))
        for key, entry in root.entries.items()
        if key not in ("vars", "groups")
    }
    groups = root.entries.get("groups")
    if groups is not None:
        value = groups.value
        if isinstance(value, List):
            model = root.entries.get("model")
            items = [
                _resolved_group(item, index, model, base, reading, mentions) for index, item in enumerate(value.items)
            ]
            value = list_of(items, value.span, head=value.head, notes=value.notes)
        else:
            value = base.resolve(value)
        entries["groups"] = Entry(groups.key, value)
    for entry in variables.values():  # a variable that nothing uses is checked all the same
        base.resolve(entry.value)
    if vars_entry is None:
        readable = not any(nearest(key, ["vars"]) for key in root.entries)
    else:
        readable = isinstance(vars_entry.value, Map) or plain(vars_entry.value) is None
    if readable:  # else every variable is unknown, for a reason that is reported
        reading.problems.extend(mentions.problems(variables))
    return map_of(entries, root.span, head=root.head, notes=root.notes)


def _resolved_group(
    group: Node,
    index: int,
    model: Entry | None,
    base: Scope,
    reading: Reading,
    mentions: Mentions,
) -> Node:
    if not isinstance(group, Map):
        return base.resolve(group)
    path: Path = ("groups", index, "vars")
    own = declared(group.entries["vars"].value, reading.problems, path) if "vars" in group.entries else {}
    for name, entry in own.items():
        if name not in base.variables:
            mentions.miss(name, entry.key, setting=True)
    scope = Scope({**base.variables, **own}, reading=reading, mentions=mentions) if own else base
    entries = {
        key: Entry(entry.key, scope.resolve(entry.value)) for key, entry in group.entries.items() if key != "vars"
    }
    own_model = group.entries.get("model")
    if own_model is not None and model is not None:
        merged = merge(model.value, own_model.value)
        entries["model"] = Entry(own_model.key, scope.resolve(merged))
    elif model is not None:
        reading.expanded.spend(model.value.size if own else 1, model.key)
        entries["model"] = Entry(model.key, scope.resolve(model.value))
    elif own_model is None:  # the manifest's missing model is reported once, for the manifest
        entries["model"] = Entry(group.head, Gap(group.head))
    named = {"name": entries["name"], **entries} if "name" in entries else entries
    return map_of(named, group.span, head=group.head, notes=group.notes)


def _with_teachers(tree: Map, folder: FilePath, problems: list[Problem], *, fetch: bool) -> Map:
    """The manifest with the models that are taken from teachers spelled out; its own is taken from the first's."""
    groups = tree.entries["groups"].value if "groups" in tree.entries else None
    places: list[tuple[Path, Node | None]] = [
        (("groups", index), group.entries["teacher"].value if "teacher" in group.entries else None)
        for index, group in enumerate(groups.items if isinstance(groups, List) else ())
        if isinstance(group, Map)
    ]
    first = places[0][1] if places else None
    teachers = None
    for path, teacher in [((), first), *places]:
        model = find(tree, (*path, "model"))
        if model.missing or not (isinstance(model.node, Map) and "from" in model.node.entries):
            continue
        from caramba_core.manifest.inherit import inherit
        from caramba_core.manifest.teacher import Teachers

        teachers = teachers or Teachers(folder, fetch=fetch)
        spelled_out = inherit(model.node, teacher, teachers, (*path, "model"), problems)
        changed = replaced_at(tree, (*path, "model"), spelled_out)
        assert isinstance(changed, Map)
        tree = changed
    return tree


def _structured(data: dict[str, Any]) -> tuple[Manifest | None, list[Fault]]:
    """The typed manifest, or what is wrong."""
    plugins = registry()
    try:
        manifest = Structurer(plugins).structure(data, Manifest)
    except Faults as error:
        return None, [*error.faults, *rule_faults(data, error.faults, plugins)]
    return manifest, [*rule_faults(data, (), plugins), *group_faults(manifest)]


# ------------------------------------------------------------------------------------------------ places and order


def _problem(tree: Map, fault: Fault) -> Problem:
    """A fault with the place of what it is about."""
    found = find(tree, fault.path)
    if fault.at == "key" and found.key is not None and not found.missing:
        span = found.key
    elif found.missing or fault.message.startswith("missing key"):
        span = found.node.head if isinstance(found.node, Map | List) else found.node.span
    else:
        span = found.node.span
    return span.problem(
        fault.message, path=fault.path, found=fault.found, expected=fault.expected, hint=fault.hint, notes=found.notes
    )


def _in_order(composer: Composer, overrides: Sequence[str]) -> tuple[Problem, ...]:
    """Problems in the order of the file, then of the files that it is made of, then of the command line; each once."""
    names = dict.fromkeys([*(source.name for source in composer.sources), *map(override_name, overrides)])
    order = {name: index for index, name in enumerate(names)}
    once: dict[tuple[str, int | None, int | None, str], Problem] = {}
    problems = composer.reading.problems
    for problem in problems:
        once.setdefault((problem.file, problem.line, problem.column, problem.message), problem)
    ordered = sorted(once.values(), key=lambda p: (order.get(p.file, len(order)), p.line or 0, p.column or 0))
    if problems.left_out:
        ordered.append(Problem(file=ordered[0].file, message=f"and {problems.left_out} problems more"))
    return tuple(ordered)


def _escaped(value: Any) -> Any:
    """Strings in which ``${`` stands for itself, as a manifest writes it."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return value
