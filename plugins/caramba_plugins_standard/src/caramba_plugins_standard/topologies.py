"""Layers made of layers, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from caramba_document.problem import Path
from caramba_document.tree import List, Map, Node, Scalar, find, plain, replaced_at

from caramba_core.components import Body, Layer, Topology, component, option
from caramba_core.errors import InvalidValue
from caramba_core.graph import MAX_APPLICATIONS, MAX_NODES
from caramba_plugins_standard.each import spread

__all__ = ["Cyclic", "Nested", "Recurrent", "Residual", "Stacked"]


@component
class Stacked(Topology):
    """Layers in order."""

    builds: ClassVar[str] = ""
    inline: ClassVar[str | None] = "caramba_core.nn.sequence:chain"

    layers: tuple[Layer, ...] = option(help="the layers, in order")

    def __attrs_post_init__(self) -> None:
        _need_layers(self.layers)

    def bodies(self) -> Sequence[Body]:
        """One chain in the enclosing scope."""
        return (Body(layers=self.layers),)


@component
class _Keeping(Stacked):
    """Base of topologies whose layers must keep the width."""

    inline: ClassVar[str | None] = None

    def join(self, width: int, outputs: Sequence[int]) -> int:
        """The input's width, which the layers must give back."""
        for output in outputs:
            if output != width:
                raise InvalidValue("layers", f"they turn width {width} into {output}", expected="the input's width")
        return width


@component
class Residual(_Keeping):
    """``x + f(x)``, f being the layers in order; f must keep the width."""

    inline: ClassVar[str | None] = "caramba_plugins_standard.topology_modules:residual"
    adds_input: ClassVar[bool] = True

    layers: tuple[Layer, ...] = option(help="the layers of f, in order")


@component
class Nested(Topology):
    """A named group of layers, repeated with weights of its own each time.

    ``each`` gives single fields other values a repetition: ``{attention.sem_dim: [8, 8, 16]}`` sets the field
    ``sem_dim`` of the node ``attention`` of every repetition in turn.  Where repetitions differ by more than fields,
    ``variants`` holds other layers, and ``order: [0, 1, 0]`` gives the second repetition the first of them; ``each``
    has ``null`` where the layers of a repetition do not have a field.
    """

    role: ClassVar[str] = "blocks"
    builds: ClassVar[str] = "caramba_plugins_standard.topology_modules:NestedModule"
    separable: ClassVar[bool] = True

    layers: tuple[Layer, ...] = option(help="the layers of one repetition, in order")
    repeat: int = option(default=1, help="how many repetitions follow one another", minimum=1, maximum=MAX_NODES)
    each: Mapping[str, tuple[Any, ...]] = option(
        factory=dict, help="values by repetition: NODE.FIELD to a list with one value a repetition"
    )

    variants: tuple[tuple[Layer, ...], ...] = option(
        default=(), help="other layers that repetitions may have instead of layers"
    )
    order: tuple[int, ...] = option(
        default=(), help="by repetition: 0 for layers, k for the k-th of variants; all have layers if not given"
    )

    def __attrs_post_init__(self) -> None:
        for layers in (self.layers, *self.variants):
            _need_layers(layers)
        self._check_order()
        for path, values in self.each.items():
            if len(values) != self.repeat:
                raise InvalidValue("each", f"{path} has {len(values)} values", expected=f"{self.repeat} values")
        for index in range(self.repeat if self.each else 0):
            self._repetition(index)

    def bodies(self) -> Sequence[Body]:
        """One chain a repetition, named by its index."""
        return tuple(Body(layers=self._repetition(index), name=str(index)) for index in range(self.repeat))

    def with_repetitions(
        self, written: Map, nodes: Sequence[Mapping[str, Path]], change: Callable[[int, Map], Map]
    ) -> Map:
        """As ``caramba_plugins_upcycle.teacher_model.Repeated`` says: other layers become ``variants``.

        Values of ``each`` that belong to ``nodes`` go there.
        """
        each = written.get("each")
        fields = dict(each.entries) if isinstance(each, Map) else {}
        moved = {key: fields.pop(key) for key in list(fields) for name in nodes[0] if key.startswith(f"{name}.")}
        distinct: list[Node] = []
        seen: list[Any] = []
        order: list[int] = []
        for index in range(self.repeat):
            body: Node = written
            for key, values in moved.items():
                name = next(name for name in nodes[index] if key.startswith(f"{name}."))
                assert isinstance(values.value, List)
                field = key.removeprefix(f"{name}.").split(".")
                body = replaced_at(body, (*nodes[index][name], *field), values.value.items[index])
            assert isinstance(body, Map)
            variant = self.order[index] if self.order else 0
            layers = find(change(index, body), ("variants", variant - 1) if variant else ("layers",))
            assert layers is not None
            if plain(layers) not in seen:
                seen.append(plain(layers))
                distinct.append(layers)
            order.append(seen.index(plain(layers)))
        span = written.span
        changed = written.without("each", "variants", "order").set("layers", distinct[0])
        if fields:
            changed = changed.set("each", Map(fields, written.entries["each"].value.span), written.entries["each"].key)
        if len(distinct) > 1:
            changed = changed.set("variants", List(tuple(distinct[1:]), span))
            changed = changed.set("order", List(tuple(Scalar(place, span) for place in order), span))
        return changed

    def _check_order(self) -> None:
        if self.order and len(self.order) != self.repeat:
            raise InvalidValue("order", f"has {len(self.order)} values", expected=f"{self.repeat} values")
        for index, which in enumerate(self.order):
            if not 0 <= which <= len(self.variants):
                raise InvalidValue(
                    "order", f"there is no variant {which}", expected=f"0 to {len(self.variants)}", within=(index,)
                )
        for which in range(1, len(self.variants) + 1):
            if which not in self.order:
                raise InvalidValue(
                    "variants", "no repetition has this variant", expected=f"{which} in order", within=(which - 1,)
                )

    def _repetition(self, index: int) -> tuple[Layer, ...]:
        choices = (self.layers, *self.variants)
        layers = choices[self.order[index]] if self.order else self.layers
        return spread(layers, {path: values[index] for path, values in self.each.items()})


@component
class Recurrent(_Keeping):
    """One chain applied ``times`` times with the same weights: ``h_1 = f(x)``, ``h_i = f(h_{i-1})``.

    With ``inject`` the input is added again before every later application: ``h_i = f(h_{i-1} + x)``.  Every
    application keeps a cache of its own.
    """

    role: ClassVar[str] = "recurrent"
    builds: ClassVar[str] = "caramba_plugins_standard.topology_modules:RecurrentModule"

    layers: tuple[Layer, ...] = option(help="the layers of f, in order")
    times: int = option(help="how often f is applied", minimum=1, maximum=MAX_APPLICATIONS)
    inject: bool = option(default=False, help="add the input again before every application but the first")

    def bodies(self) -> Sequence[Body]:
        """One chain, ``body``, applied ``times`` times."""
        return (Body(layers=self.layers, name="body", applications=self.times),)


@component
class Cyclic(_Keeping):
    """k layers used in rotation for ``times`` applications in all: 0, 1, .., k-1, 0, 1, ...

    Weights are shared between the turns, caches are not: a layer that is used three times keeps three.
    """

    role: ClassVar[str] = "cyclic"
    builds: ClassVar[str] = "caramba_plugins_standard.topology_modules:CyclicModule"

    layers: tuple[Layer, ...] = option(help="the k layers; a chain of several is one stacked layer")
    times: int = option(help="applications in all, at least one of each layer", minimum=1, maximum=MAX_APPLICATIONS)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.times < len(self.layers):
            raise InvalidValue("times", f"{self.times} leaves layers unused", expected=f"at least {len(self.layers)}")

    def bodies(self) -> Sequence[Body]:
        """One body a layer, named by its index, with its share of the applications."""
        count = len(self.layers)
        return tuple(
            Body(layers=(layer,), name=str(index), applications=(self.times - index + count - 1) // count)
            for index, layer in enumerate(self.layers)
        )


def _need_layers(layers: Sequence[Layer]) -> None:
    if not layers:
        raise InvalidValue("layers", "is empty", expected="at least one layer")
