"""From a manifest's model to its graph: names, widths, and every fault of the model in one report.  No torch.

Widths flow from the embedder through the layers to the head.  Where two do not meet, both nodes are named: the one that
has the width and the one that cannot take it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import attrs
from caramba_document.problem import Fault, Path

from caramba_core.components import Attention, Body, Embedder, Layer, Model, Topology, evolve
from caramba_core.errors import Faults, InvalidValue
from caramba_core.graph import MAX_APPLICATIONS, MAX_NODES, MAX_VALUES, ROOT, Graph, Names, Node, Scope, name_fault

__all__ = ["lower"]


def lower(model: Model, path: Path = ("model",)) -> Graph:
    """The graph of a model; ``path`` is where the model stands in the resolved manifest.

    Raises :class:`Faults` with every fault: widths that do not meet, names that cannot be, what is too large.
    """
    return _Lowering().model(model, path)


@attrs.frozen
class _Flow:
    """The width at a point of the model, and the node whose output it is."""

    width: int
    source: str
    path: Path


class _TooManyError(Exception):
    """Lowering cannot go on."""


class _Lowering:
    def __init__(self) -> None:
        self._faults: dict[tuple[Path, str], Fault] = {}
        self._count = 0
        self._applied = 0
        self._around: list[tuple[int, int, Path]] = []
        """The topologies around the node at hand: how many bodies each has and runs, and where it was written."""

    def model(self, model: Model, path: Path) -> Graph:
        """Embedder, layers and head."""
        embedder, flow = self._embedder(model.embedder, (*path, "embedder"))
        names = Names((model.topology,), reserved=("embedder", "head"))
        with suppress(_TooManyError):  # which is noted as a fault
            topology, flow = self._layer(model.topology, (*path, "topology"), ROOT, names, flow, 1)
            head = self._head(model, path, embedder, flow)
        if self._faults:
            raise Faults(*self._faults.values())
        graph = Graph(embedder=embedder, topology=topology, head=head, tied_embeddings=model.tied_embeddings)
        for node in {(id(node.config), node.width_in): node for node in graph.walk()}.values():
            self._check_sizes(node)
        if self._faults:
            raise Faults(*self._faults.values())
        return graph

    # ------------------------------------------------------------------------------------------------ the two ends

    def _embedder(self, config: Embedder, path: Path) -> tuple[Node, _Flow]:
        self._fixed_name(config, path)
        tokens = _Flow(config.vocab_size, "the token ids", path)
        return self._leaf(config, path, f"{ROOT}.{config.role}", tokens)

    def _head(self, model: Model, path: Path, embedder: Node, flow: _Flow) -> Node:
        vocabulary, tied = model.embedder.vocab_size, model.tied_embeddings
        given, place = model.head, (*path, "head")
        assert given is not None, "a manifest that names no head has the default one"
        self._fixed_name(given, place)
        if given.tied and not tied:
            hint = "set model.tied_embeddings: true"
            self._fault((*place, "tied"), "the head is tied, the model is not", hint=hint)
        wanted = vocabulary if given.vocab_size is None else given.vocab_size
        if (tied and wanted != vocabulary) or wanted < vocabulary:
            expected = f"{vocabulary}, as the embedder" if tied else f"at least {vocabulary}, the embedder's vocabulary"
            self._fault((*place, "vocab_size"), f"the head has {wanted} logits", expected=expected)
            wanted = vocabulary
        config = evolve(given, vocab_size=wanted, tied=tied)
        if tied:
            self._tie(path, embedder, flow)
        return self._leaf(config, place, f"{ROOT}.{config.role}", flow)[0]

    def _tie(self, path: Path, embedder: Node, flow: _Flow) -> None:
        """The head reads the embedder's matrix ``[V, D]``: it must have one, as wide as what arrives."""
        matrix = embedder.config.weights(embedder.width_in).get("weight")
        if matrix is None or matrix.shape != (embedder.width_in, embedder.width_out):
            self._fault(
                (*path, "tied_embeddings"),
                "this embedder has no matrix that a head could read",
                expected=f"a weight of shape [{embedder.width_in}, {embedder.width_out}]",
                hint="set tied_embeddings: false",
            )
        elif flow.width != embedder.width_out:
            self._fault(
                (*path, "tied_embeddings"),
                f"{ROOT}.head cannot read the matrix of {embedder.name}, which is {embedder.width_out} wide: "
                f"{flow.source} gives it a width of {flow.width}",
                expected="one width from the embedder to the head",
                hint=f"set tied_embeddings: false, or let {flow.source} end with a width of {embedder.width_out}",
            )

    def _fixed_name(self, config: Layer, path: Path) -> None:
        if config.name is not None and config.name != config.role:
            message = f"the name of the {config.role} is always {config.role!r}"
            self._fault((*path, "name"), message, hint="remove name:")

    # ------------------------------------------------------------------------------------------------- the layers

    def _layer(
        self, config: Layer, path: Path, scope: str, names: Names, flow: _Flow, applications: int
    ) -> tuple[Node, _Flow]:
        self._spend(1, path, applications=applications)
        inline = isinstance(config, Topology) and config.inline is not None and config.name is None
        name = scope if inline else f"{scope}.{self._local(config, path, names)}"
        if isinstance(config, Topology):
            return self._topology(config, path, name, names if inline else None, flow, applications)
        return self._leaf(config, path, name, flow, applications)

    def _leaf(self, config: Layer, path: Path, name: str, flow: _Flow, applications: int = 1) -> tuple[Node, _Flow]:
        width = flow.width  # to go on with where the output's is at fault
        with self._reading(path, flow, name):
            config.check(flow.width)
        with self._reading(path, flow, name):
            width = config.output_width(flow.width)
        node = Node(
            name=name, config=config, path=path, width_in=flow.width, width_out=width, applications=applications
        )
        return node, _Flow(width, name, path)

    def _spend(self, nodes: int, path: Path, *, applications: int = 0, ahead: int = 0) -> None:
        """Count nodes, and how often a pass runs them; ``ahead`` are those that will follow at least."""
        self._count += nodes
        self._applied += applications
        if self._count + ahead > MAX_NODES:
            _, _, most = max(self._around, default=(0, 0, path), key=lambda around: around[0])
            self._fault(
                most,
                f"the model has more than {MAX_NODES:,} nodes once its repetitions are spelled out",
                hint="lower the repeat: of this component or of one around it",
            )
            raise _TooManyError
        if self._applied > MAX_APPLICATIONS:
            _, _, most = max(self._around, default=(0, 0, path), key=lambda around: around[1])
            self._fault(
                most,
                f"one pass runs more than {MAX_APPLICATIONS:,} nodes, each as often as it is applied",
                hint="lower the times: of this component or of one around it",
            )
            raise _TooManyError

    def _check_sizes(self, node: Node) -> None:
        """Note tensors that no machine holds."""
        config, width = node.config, node.width_in
        shapes = {f"the weight {name}": weight.shape for name, weight in config.weights(width).items()}
        if isinstance(config, Attention):
            cached = config.cache_spec(width).items()
            shapes |= {f"the cached {name}": entry.shape for name, entry in cached}
        for what, shape in shapes.items():
            if math.prod(shape) > MAX_VALUES:
                sizes = " x ".join(f"{size:,}" for size in shape)
                expected = f"at most {MAX_VALUES:,} values"
                self._fault(node.path, f"{what} is too large: {sizes} values", expected=expected)

    def _topology(
        self, config: Topology, path: Path, name: str, enclosing: Names | None, flow: _Flow, applications: int
    ) -> tuple[Node, _Flow]:
        """``enclosing`` are the names of the scope that an inline topology without a name leaves its layers in."""
        with self._reading(path, flow, name):
            config.check(flow.width)
        bodies = config.bodies()
        self._around.append((len(bodies), sum(body.applications for body in bodies), path))
        self._spend(0, path, ahead=len(bodies))
        if config.inline is not None:
            assert len(bodies) == 1, f"{name}: an inline topology has one body"
        scopes: list[Scope] = []
        ends: list[_Flow] = []
        for body, paths in zip(bodies, _paths(config, path, bodies), strict=True):
            assert (body.name is None) == (config.inline is not None), f"{name}: bodies have names, inline ones none"
            scope = name if body.name is None else f"{name}.{body.name}"
            names = enclosing if enclosing is not None else Names(body.layers)
            times = applications * body.applications
            current = ends[-1] if ends and config.flow == "chain" else flow
            nodes: list[Node] = []
            for layer, where in zip(body.layers, paths, strict=True):
                node, current = self._layer(layer, where, scope, names, current, times)
                nodes.append(node)
            scopes.append(Scope(name=scope, nodes=tuple(nodes), applications=body.applications))
            ends.append(current)
        self._around.pop()
        end = self._join(config, path, name, flow, ends)
        node = Node(
            name=name,
            config=config,
            path=path,
            width_in=flow.width,
            width_out=end.width,
            applications=applications,
            inline=enclosing is not None,
            scopes=tuple(scopes),
        )
        return node, end

    def _join(self, config: Topology, path: Path, name: str, flow: _Flow, ends: Sequence[_Flow]) -> _Flow:
        try:
            width = config.join(flow.width, [end.width for end in ends])
        except InvalidValue as error:
            first = ends[0] if config.flow == "fan" else flow
            second = next((end for end in ends if end.width != first.width), ends[0])
            message = f"{error.message} {_widths(first, second)}"
            self._faults.setdefault((path, "join"), attrs.evolve(Fault.of(error), path=second.path, message=message))
            return flow
        if config.flow == "chain" and ends[-1].width == width:
            return ends[-1]  # the node inside that made the width is what later messages name
        return _Flow(width, name, path)

    def _local(self, config: Layer, path: Path, names: Names) -> str:
        if config.name is not None:
            wrong = name_fault(config.name)
            if wrong is None and names.used(config.name):
                wrong = f"another node of the same scope is called {config.name!r}"
            if wrong is not None:
                self._fault((*path, "name"), wrong, hint="choose another name")
        return names.give(config)

    # ------------------------------------------------------------------------------------------------ faults

    @contextmanager
    def _reading(self, path: Path, flow: _Flow, name: str) -> Iterator[None]:
        """Note what a config has against its input."""
        try:
            yield
        except InvalidValue as error:
            fault = Fault.of(error, *path)
            message = f"{name} cannot take its input: {error.message} {_widths(flow)}"
            self._faults.setdefault((fault.path, error.message), attrs.evolve(fault, message=message))

    def _fault(self, path: Path, message: str, *, expected: str | None = None, hint: str | None = None) -> None:
        """Note a fault; the same one in every repetition is one fault."""
        self._faults.setdefault((path, message), Fault(path=path, message=message, expected=expected, hint=hint))


def _widths(*flows: _Flow) -> str:
    return f"({', '.join(f'{flow.width} from {flow.source}' for flow in flows)})"


# ------------------------------------------------------------------------------------------- where layers were written


def _paths(config: Topology, path: Path, bodies: Sequence[Body]) -> Iterator[tuple[Path, ...]]:
    """For each body the manifest paths of its layers.

    A topology holds its layers in fields of its own (``layers``, ``branches``, ...).  A body's layer is found there by
    identity; one that the topology changed for this body by its place in a list of layers of the same types.
    """
    fields = attrs.fields(cast(Any, type(config)))
    chains = [chain for field in fields for chain in _chains(getattr(config, field.name), (*path, field.name))]
    places = {id(layer): place for chain in chains for layer, place in chain}
    for body in bodies:
        types = [type(layer) for layer in body.layers]
        alike = (chain for chain in chains if [type(layer) for layer, _ in chain] == types)
        if all(id(layer) in places for layer in body.layers):
            yield tuple(places[id(layer)] for layer in body.layers)
        else:
            yield tuple(place for _, place in next(alike, [(config, path)] * len(types)))


def _chains(value: Any, path: Path) -> Iterator[list[tuple[Layer, Path]]]:
    """The lists of layers in a field, each layer with its place."""
    if isinstance(value, Layer):
        yield [(value, path)]
    elif isinstance(value, tuple):
        yield [(item, (*path, index)) for index, item in enumerate(value) if isinstance(item, Layer)]
        for index, item in enumerate(value):
            if isinstance(item, tuple):
                yield from _chains(item, (*path, index))
