"""What a picture of a model shows, before anything is drawn: cards, chains, frames and fans.

Bodies of a topology that follow one another and are built alike become one, with their count; where their sizes differ
(``each:``) a figure becomes a range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final, Literal, TypeAlias, cast

import attrs
from caramba_terminal.numbers import format_average, format_bytes, format_count, format_indexes

from caramba_core.components import Attention, Component, Embedder, Head, Layer, Topology
from caramba_core.plan import Figures, ModelPlan, NodePlan, ScopePlan
from caramba_core.plugins.registry import registry
from caramba_plugins_draw.terminal import drawn

__all__ = ["Card", "Chain", "Fan", "Frame", "Role", "Shape", "Sketch", "sketch"]

Role: TypeAlias = Literal["attention", "mlp", "norm", "edge", "other"]
"""What a card's colour says."""

_MOST_FRAMES: Final = 8
"""Runs of like bodies that are drawn one after the other; more are drawn once a kind."""


@attrs.frozen(kw_only=True)
class Card:
    """A component without bodies.

    ``settings`` are its own sizes in words, ``cache`` what it keeps and ``cache_size`` how much that is, ``weights``
    the shapes of its tensors, ``tip`` its full name.
    """

    name: str
    type: str
    role: Role
    parameters: str
    settings: tuple[str, ...]
    cache: tuple[str, ...]
    cache_size: str
    weights: tuple[str, ...]
    tip: str
    width_in: str
    width_out: str


@attrs.frozen(kw_only=True)
class Chain:
    """Shapes in order."""

    items: tuple[Shape, ...]
    width_in: str
    width_out: str


@attrs.frozen(kw_only=True)
class Frame:
    """A chain with something around it: a named scope, repetitions, or ``x + f(x)``.

    ``reuse`` says how often it is applied with the same weights; ``is_looped`` draws the way back.
    """

    title: str
    note: str
    inner: Chain
    count: int = 1
    figures: str = ""
    reuse: str = ""
    is_looped: bool = False
    is_residual: bool = False

    @property
    def width_in(self) -> str:
        """Width of what goes in."""
        return self.inner.width_in

    @property
    def width_out(self) -> str:
        """Width of what comes out."""
        return self.inner.width_out


@attrs.frozen(kw_only=True)
class Fan:
    """Branches of one input; ``note`` says how they become one."""

    title: str
    note: str
    branches: tuple[Chain, ...]
    figures: str
    width_in: str
    width_out: str


Shape: TypeAlias = "Card | Frame | Fan | Chain"


@attrs.frozen(kw_only=True)
class Sketch:
    """A whole model: a title, facts in words, and the chain from tokens to logits."""

    title: str
    facts: tuple[str, ...]
    chain: Chain


def sketch(model: ModelPlan, title: str, facts: Sequence[str] = ()) -> Sketch:
    """The sketch of a planned model."""
    total = model.total
    own = [
        f"{format_count(total.parameters)} parameters",
        f"at a context of {model.context:,}: {format_count(total.operations / model.context)} operations per token",
        f"{format_average(total.cache_bytes)} cached bytes per token in {model.dtype}",
    ]
    if total.state_bytes:
        own.append(f"{format_bytes(total.state_bytes)} cached once per sequence")
    return Sketch(title=title, facts=(*own, *facts), chain=_chain([model.roots]))


# ------------------------------------------------------------------------------------------------ chains


def _chain(alike: Sequence[Sequence[NodePlan]]) -> Chain:
    """One chain for several that are built alike."""
    columns = zip(*[list(drawn(nodes)) for nodes in alike], strict=True)
    items = tuple(shape for column in columns for shape in _shapes(column))
    first, last = [nodes[0] for nodes in alike], [nodes[-1] for nodes in alike]
    return Chain(
        items=items,
        **_widths(first, last),
    )


def _shapes(nodes: Sequence[NodePlan]) -> Iterator[Shape]:
    """The shapes of one place of chains that are alike."""
    first = nodes[0]
    config = first.node.config
    if not isinstance(config, Topology):
        yield _card(nodes)
    elif config.inline is not None:
        inner = _chain([node.scopes[0].nodes for node in nodes])
        yield Frame(
            title=first.local,
            note="" if config.adds_input and not first.local else first.type,
            inner=inner,
            is_residual=config.adds_input,
            figures=_parameters(nodes) if first.local else "",
        )
    elif config.flow == "fan":
        yield Fan(
            title=first.local,
            note=_note(first),
            branches=tuple(_chain(column) for column in zip(*(_bodies(node) for node in nodes), strict=True)),
            figures=_parameters(nodes),
            **_widths(nodes, nodes),
        )
    else:
        yield from _bodies_in_order(nodes)


def _bodies(node: NodePlan) -> list[tuple[NodePlan, ...]]:
    return [scope.nodes for scope in node.scopes]


def _bodies_in_order(nodes: Sequence[NodePlan]) -> Iterator[Shape]:
    """Bodies that feed one another: like ones that are neighbours in one frame."""
    first = nodes[0]
    assert isinstance(first.node.config, Topology)
    runs = [list(run) for _, run in groupby(range(len(first.scopes)), key=lambda i: _build(first.scopes[i]))]
    in_order = len(runs) <= _MOST_FRAMES
    if not in_order:
        kinds: dict[object, list[int]] = {}
        for index, scope in enumerate(first.scopes):
            kinds.setdefault(_build(scope), []).append(index)
        runs = list(kinds.values())
    note = _note(first)
    if not in_order:
        note += f"{', ' if note else ''}in the order of the numbers"
    frames: list[Frame] = []
    for run in runs:
        scopes = [node.scopes[index] for node in nodes for index in run]
        name = format_indexes([first.scopes[index].local for index in run]).replace("-", "\u2013")
        frames.append(
            Frame(
                title=f"{first.local}.{name}" if len(runs) > 1 or len(first.scopes) > 1 else first.local,
                note=note if len(runs) == 1 else "",
                inner=_chain([scope.nodes for scope in scopes]),
                count=len(run),
                figures=_figures(scopes, each=len(run) > 1),
                reuse=_reuse(scopes[0].applications),
                is_looped=scopes[0].applications > 1 and len(runs) == 1,
            )
        )
    if len(frames) == 1:
        yield frames[0]
        return
    whole = Chain(items=tuple(frames), width_in=frames[0].width_in, width_out=frames[-1].width_out)
    rotates = any(frame.reuse for frame in frames)
    yield Frame(
        title=first.local,
        note=note,
        inner=whole,
        figures=_parameters(nodes),
        reuse="one after the other, then from the first again" if rotates else "",
        is_looped=rotates,
    )


def _note(node: NodePlan) -> str:
    """What a topology is, where its name does not say so."""
    assert isinstance(node.node.config, Topology)
    kind = () if node.type == node.local else (node.type,)
    return ", ".join((*kind, *_topology_settings(node.node.config)))


def _reuse(applications: int) -> str:
    return f"applied {applications} times with the same weights, a cache each" if applications > 1 else ""


def _build(scope: ScopePlan) -> object:
    """What must be equal for bodies to be drawn as one: names, types and manners, not sizes."""
    inside = (
        (node.local, node.type, _manner(node.node.config), tuple(_build(inner) for inner in node.scopes))
        for node in scope.nodes
    )
    return (scope.applications, *inside)


def _manner(config: Layer) -> tuple[str, ...]:
    """The fields of a component that are no sizes: a window or none, one layout or another."""
    values = {attribute.name: getattr(config, attribute.name) for attribute in _fields(config)}
    return tuple(f"{name} {value!r}" for name, value in values.items() if not (_is_size(value) or _holds_layers(value)))


def _fields(config: Layer) -> Iterator[attrs.Attribute[Any]]:
    """The fields of a component beside its name."""
    return (attribute for attribute in attrs.fields(cast(Any, type(config))) if attribute.name != "name")


def _is_size(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _holds_layers(value: object) -> bool:
    return isinstance(value, Layer) or (isinstance(value, tuple) and any(map(_holds_layers, value)))


# ------------------------------------------------------------------------------------------------ cards


def _card(nodes: Sequence[NodePlan]) -> Card:
    first = nodes[0]
    config = first.node.config
    return Card(
        name=first.local,
        type=first.type,
        role=_role(config),
        parameters=_parameters(nodes),
        settings=tuple(_settings([node.node.config for node in nodes])),
        cache=tuple(_cache(nodes)),
        cache_size=_cache_size([node.total for node in nodes]),
        weights=tuple(_weights(nodes)),
        tip=first.node.name,
        **_widths(nodes, nodes),
    )


def _role(config: Layer) -> Role:
    if isinstance(config, Attention):
        return "attention"
    if isinstance(config, Embedder | Head):
        return "edge"
    if config.role in ("mlp", "norm"):
        return cast(Role, config.role)
    return "other"


def _parameters(nodes: Sequence[NodePlan]) -> str:
    config = nodes[0].node.config
    if isinstance(config, Head) and config.tied:
        return "the embedder's matrix"
    counts = [node.total.parameters for node in nodes]
    return f"{_span(counts, format_count)} parameters" if any(counts) else ""


def _figures(scopes: Sequence[ScopePlan], *, each: bool) -> str:
    """Parameters and cache of a body."""
    totals = [scope.total for scope in scopes]
    words = [f"{_span([total.parameters for total in totals], format_count)} parameters"]
    cached = _cache_size(totals, "cached bytes")
    if cached:
        words.append(cached)
    return ", ".join(words) + (" each" if each else "")


def _settings(configs: Sequence[Layer]) -> Iterator[str]:
    """The fields that a component must be given, and simple ones that differ from their default."""
    for attribute in _fields(configs[0]):
        values = [getattr(config, attribute.name) for config in configs]
        told_elsewhere = isinstance(configs[0], Head) and attribute.name in ("vocab_size", "tied")
        simple = all(isinstance(value, int | float | str) for value in values)
        if told_elsewhere or not simple or values[0] == attribute.default:
            continue
        if all(isinstance(value, bool) for value in values):
            yield attribute.name if values[0] else f"no {attribute.name}"
        elif all(isinstance(value, int) for value in values):
            yield f"{attribute.name} {_span(values)}"
        else:
            yield f"{attribute.name} {values[0]}"


def _topology_settings(config: Topology) -> Iterator[str]:
    """How a topology treats its bodies, in the words of its fields."""
    for attribute in _fields(config):
        value = getattr(config, attribute.name)
        if isinstance(value, str) or (isinstance(value, bool) and value != attribute.default):
            yield value if isinstance(value, str) else attribute.name
        elif isinstance(value, Component) and not isinstance(value, Layer):
            yield f"{attribute.name} {registry().name_of(type(value))}"


def _cache(nodes: Sequence[NodePlan]) -> Iterator[str]:
    """``k_sem 96 in int8``, ``v 224 of the last 64 tokens``."""
    storage = nodes[0].storage  # bodies with other ones are not drawn as one
    for name, entry in nodes[0].cache.items():
        text = f"{name} {_shape([node.cache[name].shape for node in nodes])}"
        if entry.window is not None:
            text += f" of the last {entry.window:,} tokens"
        if storage is not None and storage.quantizes(entry):
            text += f" in {registry().name_of(type(storage))}"
        yield text if entry.per_token else f"{text} once"


def _cache_size(totals: Sequence[Figures], what: str = "bytes") -> str:
    """``1,024 bytes per token and 12 KiB once per sequence``."""
    per_token, once = [total.cache_bytes for total in totals], [total.state_bytes for total in totals]
    sizes = [f"{_span(per_token, format_average)} {what} per token"] if any(per_token) else []
    if any(once):
        sizes.append(f"{_span(once, format_bytes)} once per sequence")
    return " and ".join(sizes)


def _weights(nodes: Sequence[NodePlan]) -> Iterator[str]:
    for name in nodes[0].weights:
        yield f"{name} {_shape([node.weights[name].shape for node in nodes if name in node.weights])}"


def _shape(shapes: Sequence[tuple[int, ...]]) -> str:
    return "\u00d7".join(_span(sizes, str) for sizes in zip(*shapes, strict=False))


def _widths(first: Sequence[NodePlan], last: Sequence[NodePlan]) -> dict[str, str]:
    """The width of what goes into the first nodes of chains, and of what comes out of their last ones."""
    return {
        "width_in": _span([node.node.width_in for node in first]),
        "width_out": _span([node.node.width_out for node in last]),
    }


def _span(values: Sequence[float], words: Callable[[float], str] = "{:,}".format) -> str:
    """A number, or the range of several."""
    low, high = words(min(values)), words(max(values))
    return low if low == high else f"{low} \u2013 {high}"
