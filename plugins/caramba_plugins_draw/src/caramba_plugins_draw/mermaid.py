"""A sketch in Mermaid's language, for documents that render it themselves."""

from __future__ import annotations

from caramba_plugins_draw.sketch import Card, Chain, Fan, Frame, Shape, Sketch

__all__ = ["mermaid"]

_CLASSES = {
    "attention": "fill:#edf2ff,stroke:#3b5bdb",
    "mlp": "fill:#e3fafc,stroke:#0c8599",
    "norm": "fill:#f1f3f5,stroke:#868e96",
    "edge": "fill:#fff4e6,stroke:#e8590c",
    "other": "fill:#f8f0fc,stroke:#9c36b5",
}


def mermaid(sketch: Sketch) -> str:
    """A flowchart, top down."""
    return _Writer().document(sketch)


class _Writer:
    def __init__(self) -> None:
        self._nodes: list[str] = []
        self._edges: list[str] = []
        self._count = 0
        self._subgraphs = 0
        self._depth = 1

    def document(self, sketch: Sketch) -> str:
        """The whole text; edges stand last, because one that is named inside a subgraph pulls its ends into it."""
        start = self._node('(["token ids"])')
        end, width = self._chain(sketch.chain, start)
        logits = self._node('(["logits"])')
        self._edge(end, logits, width)
        classes = [f"  classDef {name} {style}" for name, style in _CLASSES.items()]
        head = ["---", f"title: {_quoted(', '.join((sketch.title, *sketch.facts)))}", "---", "flowchart TD"]
        return "\n".join([*head, *self._nodes, *self._edges, *classes]) + "\n"

    def _chain(self, chain: Chain, source: str) -> tuple[str, str]:
        """Draw a chain behind a node; the node that it ends in, and the width there."""
        for item in chain.items:
            source = self._shape(item, source)
        return source, chain.width_out

    def _shape(self, shape: Shape, source: str) -> str:
        if isinstance(shape, Card):
            node = self._node(f"[{_quoted(_card_text(shape))}]:::{shape.role}")
            self._edge(source, node, shape.width_in)
            return node
        if isinstance(shape, Chain):
            return self._chain(shape, source)[0]
        if isinstance(shape, Fan):
            return self._fan(shape, source)
        if shape.is_residual and not shape.title:
            return self._residual(shape, source)
        title = " ".join(part for part in (f"{shape.count} \u00d7" if shape.count > 1 else "", shape.title) if part)
        self._open(", ".join(part for part in (title, shape.note, shape.figures, shape.reuse) if part))
        first = self._count
        end = self._residual(shape, source) if shape.is_residual else self._chain(shape.inner, source)[0]
        self._close()
        if shape.is_looped:
            self._edges.append(f"  {end} -.->|again| n{first}")
        return end

    def _residual(self, frame: Frame, source: str) -> str:
        end, width = self._chain(frame.inner, source)
        plus = self._node('(("+"))')
        self._edge(end, plus, width)
        self._edge(source, plus, "")
        return plus

    def _fan(self, fan: Fan, source: str) -> str:
        self._open(", ".join(part for part in (fan.title, fan.note, fan.figures) if part))
        ends = [self._chain(branch, source) for branch in fan.branches]
        join = self._node(f"(({_quoted(fan.note or fan.title)}))")
        self._close()
        for end, width in ends:
            self._edge(end, join, width)
        return join

    def _node(self, text: str) -> str:
        name = f"n{self._count}"
        self._count += 1
        self._nodes.append(f"{'  ' * self._depth}{name}{text}")
        return name

    def _open(self, title: str) -> None:
        self._nodes.append(f"{'  ' * self._depth}subgraph s{self._subgraphs}[{_quoted(title)}]")
        self._subgraphs += 1
        self._depth += 1

    def _close(self) -> None:
        self._depth -= 1
        self._nodes.append(f"{'  ' * self._depth}end")

    def _edge(self, source: str, target: str, width: str) -> None:
        self._edges.append(f"  {source} -->{f'|{_quoted(width)}|' if width else ''} {target}")


def _card_text(card: Card) -> str:
    lines = [f"<b>{card.name}</b> {card.type}", card.parameters, ", ".join(card.settings)]
    if card.cache:
        lines.append(f"cache: {', '.join(card.cache)}: {card.cache_size}")
    return "<br/>".join(line for line in lines if line)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "#quot;") + '"'
