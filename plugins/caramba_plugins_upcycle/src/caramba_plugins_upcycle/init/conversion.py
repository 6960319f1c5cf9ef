"""Which attentions of a teacher become what: the fields that transplants propose, and what stays as it is, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
from caramba_document.overrides import parse
from caramba_document.reading import Reading
from caramba_document.suggestions import listing, nearest, suggestion
from caramba_document.tree import plain

from caramba_core.components import Attention
from caramba_core.errors import Faults, InputError, InvalidValue, PluginError
from caramba_core.graph import Graph, Node, local_name
from caramba_core.manifest.structure import Structurer
from caramba_core.manifest.values import settings_of
from caramba_core.plugins.registry import registry
from caramba_plugins_upcycle.allocation.writing import written
from caramba_plugins_upcycle.transplant import CacheBudget, Transplant, missing_for_refit

__all__ = ["Conversion", "convertible", "fields_given", "offered", "propose"]

_INDEXED: Final = re.compile(r"([^\d]*)\.(\d+)\.([^\d]*)")


@attrs.frozen(kw_only=True)
class Conversion:
    """What ``replace:`` of a manifest says.

    ``replaced`` has the fields that attentions get, their type among them, by pattern of names; ``kept`` the names of
    those that stay as they are, by the reason.  ``bounded``: the new attentions keep a window of tokens or a state, so
    that what they lose shows in long contexts alone.  ``refit``: the output projections of all have what a refit needs.
    """

    replaced: Mapping[str, Mapping[str, Any]]
    kept: Mapping[str, Sequence[str]]
    bounded: bool
    refit: bool
    target: type[Attention]


def offered(parameters: Mapping[str, Any], begun: str) -> list[str]:
    """Attentions that the shell offers: those that some transplant starts."""
    return sorted({entry.name.partition("_to_")[2] for entry in registry().entries("transplant")})


def convertible(source: str) -> list[str]:
    """Attentions that an installed transplant starts from those of a type."""
    names = [entry.name for entry in registry().entries("transplant")]
    return sorted(name.removeprefix(f"{source}_to_") for name in names if name.startswith(f"{source}_to_"))


def fields_given(attention: Any, texts: Sequence[str]) -> dict[str, Any]:
    """The values of ``--with FIELD=VALUE``; raises :class:`InputError` for a field or a value that cannot be."""
    reading, given = Reading(), dict[str, Any]()
    for text, override in zip(texts, parse(texts, reading), strict=False):
        name, settings = override.parts[0][0], settings_of(attention)
        if len(override.parts) > 1 or name not in settings:
            raise InputError(
                f"--with {text}: there is no field {name!r}{suggestion(nearest(name, settings))}",
                expected=listing(settings),
            )
        try:
            given[name] = Structurer(registry()).structure(plain(override.value), settings[name][1])
        except Faults as error:
            fault = error.faults[0]
            raise InputError(f"--with {text}: {fault.message}", expected=fault.expected) from None
    if reading.problems:
        problem = reading.problems[0]
        raise InputError(f"--with {texts[0]}: {problem.message}", expected="FIELD=VALUE, such as layout=free")
    return given


def propose(graph: Graph, name: str, *, share: float, context: int, given: Sequence[str]) -> Conversion:
    """How the attentions of a model become attentions of another type with a share of the cache.

    Raises :class:`InputError` where there is no such conversion, or no attention for which it works.
    """
    nodes = list(graph.attentions().values())
    if not nodes:
        raise InputError("the checkpoint's model has no attention")
    found = {id(node): _transplant(node, name) for node in nodes}
    target = next(iter(found.values())).target
    budget = CacheBudget(
        share=share,
        context=context,
        uniform=len({_bare(node) for node in nodes}) == 1,
        given=fields_given(target, given),
    )
    fields: dict[str, dict[str, Any]] = {}
    refused: dict[str, list[str]] = {}
    bounded, refit = False, True
    for node in nodes:
        try:
            fields[node.name], made = _fields(node, found[id(node)], name, budget)
        except InvalidValue as error:
            refused.setdefault(str(error), []).append(node.name)
        else:
            spec = made.cache_spec(node.width_in).values()
            bounded |= any(entry.window is not None or not entry.per_token for entry in spec)
            refit &= not missing_for_refit(found[id(node)], made, node.width_in)
    if not fields:
        reason, names = next(iter(refused.items()))
        others = [one for one in convertible(_type(nodes[0])) if one != name and _works(nodes[0], one, budget)]
        raise InputError(
            f"no attention of this checkpoint becomes {name} with {share:g} of its cache:\n"
            f"    {local_name(names[0])}: {reason}",
            expected=f"one of: {', '.join(others)}" if others else None,
            hint="another share (--cache), or a field of your own (--with)",
        )
    replaced = _by_pattern(fields, every=not refused)
    return Conversion(replaced=replaced, kept=refused, bounded=bounded, refit=refit, target=target)


def _works(node: Node, name: str, budget: CacheBudget) -> bool:
    """Whether a node's attention becomes another one under a budget."""
    try:
        _fields(node, _transplant(node, name), name, attrs.evolve(budget, given={}))
    except (InvalidValue, PluginError):
        return False
    return True


def _type(node: Node) -> str:
    return registry().name_of(type(node.config))


def _bare(node: Node) -> Any:
    """A node's config without its name."""
    return attrs.evolve(node.config, name=None), node.width_in  # type: ignore[misc]


def _transplant(node: Node, name: str) -> Transplant:
    source = _type(node)
    known = convertible(source)
    if name not in known:
        registry().find(("attention",), name)  # which says what to install
        raise InputError(
            f"nothing installed starts {name} from the checkpoint's {source}",
            expected=f"one of: {', '.join(known)}" if known else "a plugin with a transplant from it",
            hint=f"a plugin joins by a transplant {source}_to_{name} (docs/plugins.md)",
        )
    transplant: Transplant = registry().load(registry().find(("transplant",), f"{source}_to_{name}"))()
    return transplant


def _fields(node: Node, transplant: Transplant, name: str, budget: CacheBudget) -> tuple[dict[str, Any], Attention]:
    """The fields of one replacement, and the attention that they make; :class:`InvalidValue` where none fits."""
    source = node.config
    assert isinstance(source, Attention)
    proposed = transplant.propose(source, node.width_in, budget)
    if proposed is None:
        plugin = registry().find(("transplant",), f"{_type(node)}_to_{name}").distribution
        raise PluginError(
            f"{plugin} does not say which sizes {name} has for a share of a cache",
            hint=f"write the manifest by hand, with replace: {{attention: {{type: {name}, ...}}}} below model; caramba "
            f"explain {name} tells its fields",
        )
    fields = {**proposed, **budget.given}
    target: Any = transplant.target
    known = {field.name for field in attrs.fields(target)}
    inherited = {field: getattr(source, field) for field in source.inherited if field in known}
    made: Attention = target(**{**inherited, **fields})
    transplant.check(source, made, node.width_in)
    plainly = {field: written(value) if attrs.has(type(value)) else value for field, value in fields.items()}
    return {"type": name, **plainly}, made


# ------------------------------------------------------------------------------------------------ patterns of names


def _by_pattern(fields: Mapping[str, Mapping[str, Any]], *, every: bool) -> dict[str, Mapping[str, Any]]:
    """Fields by the patterns of the nodes that get them."""
    alike: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
    for name, these in fields.items():
        alike.setdefault(repr(these), (these, []))[1].append(local_name(name))
    roles = {local_name(name).rpartition(".")[2] for name in fields}
    if every and len(alike) == 1 and len(roles) == 1:
        return {roles.pop(): next(iter(fields.values()))}
    return {pattern: these for these, names in alike.values() for pattern in _patterns(names)}


def _patterns(names: Sequence[str]) -> list[str]:
    """Names as patterns: a class is of single digits, so tens stand apart (``blocks.1[02].attention``)."""
    tens: dict[tuple[str, str, str], list[str]] = {}
    patterns = []
    for name in names:
        match = _INDEXED.fullmatch(name)
        if match is None:
            patterns.append(name)
            continue
        before, index, behind = match.groups()
        tens.setdefault((before, index[:-1], behind), []).append(index[-1])
    for (before, ten, behind), digits in tens.items():
        last = digits[0] if len(digits) == 1 else f"[{_run(digits)}]"
        patterns.append(f"{before}.{ten}{last}.{behind}")
    return patterns


def _run(digits: Sequence[str]) -> str:
    """The digits of a class, shortened where they follow each other."""
    following = len(digits) > 2 and int(digits[-1]) - int(digits[0]) == len(digits) - 1
    return f"{digits[0]}-{digits[-1]}" if following else "".join(digits)
