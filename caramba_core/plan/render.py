"""A plan in a terminal: the tree of the model, its totals, and a table of the runs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
from rich import box
from rich.table import Table
from rich.text import Text

from caramba_core.component import Head, Topology, Weight
from caramba_core.plan.data import training_operations
from caramba_core.plan.figures import Figures, bytes_in_words, count_in_words
from caramba_core.plan.nodes import ModelPlan, NodePlan, ScopePlan
from caramba_core.plan.runs import RunPlan
from caramba_core.storage import Storage

if TYPE_CHECKING:
    from rich.console import Console

    from caramba_core.plan.planning import Plan

__all__ = ["Row", "index_ranges", "model_rows", "model_table", "render", "shows"]

_CHAIN = "caramba_core.nn.sequence:chain"
_ENDLESS = 10_000
_NARROW = 100
"""Columns of a terminal below which widths are shown of outputs alone."""
_WIDE = 120
"""Columns of a terminal from which on the shapes of weights have room beside the figures."""


def render(plan: Plan, console: Console, *, full: bool = False) -> None:
    """Print a plan."""
    console.print(Text(plan.title, style="bold"))
    weights = full or console.width >= _WIDE
    console.print(model_table(plan.model, full=full, weights=weights, narrow=console.width < _NARROW))
    console.print(_totals(plan))
    if plan.runs:
        console.print(_runs_table(plan, console))


# ------------------------------------------------------------------------------------------------ the model


@attrs.frozen
class Row:
    """One line of the tree; ``guide`` are the lines that lead to it, ``times`` how often it is there."""

    guide: str
    label: str
    type: str
    width: str
    figures: Figures
    weights: str = ""
    times: int = 1
    group: bool = False


def model_table(model: ModelPlan, *, full: bool = False, weights: bool = True, narrow: bool = False) -> Table:
    """The tree with widths, parameters, operations and cache of each node; repeated bodies once, with their count."""
    table = Table(box=None, padding=(0, 1 if narrow else 2, 0, 0), header_style="dim", expand=False)
    table.add_column("node", no_wrap=True)
    table.add_column("type", no_wrap=True, style="cyan")
    table.add_column("width", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("operations\na token", justify="right", no_wrap=True)
    table.add_column("cached bytes\na token", justify="right", no_wrap=True)
    if weights:
        table.add_column("weights", style="dim", overflow="fold")
    for row in model_rows(model, full=full):
        figures = row.figures
        label = Text(row.guide, style="dim") + Text(row.label, style="italic dim" if row.group else "")
        if row.times > 1:
            label.append(f"  x {row.times}", style="bold")
        table.add_row(
            label,
            row.type,
            row.width.rpartition("-> ")[2] if narrow else row.width,
            count_in_words(figures.parameters) if figures.parameters else "",
            count_in_words(figures.operations / model.context) if figures.operations else "",
            _cache_words(figures),
            *([row.weights] if weights else []),
        )
    return table


def model_rows(model: ModelPlan, *, full: bool = False) -> Iterator[Row]:
    """The lines of the tree; ``full`` spells repeated bodies out."""
    yield Row("", "model", "", "", model.total)
    yield from _chain(model.roots, "", full)


def _chain(nodes: Sequence[NodePlan], guide: str, full: bool) -> Iterator[Row]:
    shown = list(_unfolded(nodes))
    for index, node in enumerate(shown):
        last = index == len(shown) - 1
        yield from _node(node, guide + ("└─ " if last else "├─ "), guide + ("   " if last else "│  "), full)


def _node(node: NodePlan, guide: str, below: str, full: bool) -> Iterator[Row]:
    width_in, width_out = node.node.width_in, node.node.width_out
    width = f"{width_in:,}" if width_in == width_out else f"{width_in:,} -> {width_out:,}"
    label = node.local or f"({node.type})"
    kind = node.type if node.local else ""
    if isinstance(node.node.config, Head) and node.node.config.tied:
        kind += ", tied"
    yield Row(guide, label, kind, width, node.total, _weights(node.weights), group=not node.local)
    if len(node.scopes) == 1 and node.scopes[0].local == (node.local or node.scopes[0].local):
        yield from _chain(node.scopes[0].nodes, below, full)
        return
    groups = [((scope,), scope) for scope in node.scopes] if full else node.alike()
    for index, (scopes, first) in enumerate(groups):
        last = index == len(groups) - 1
        yield from _scope(scopes, first, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "), full)


def _scope(scopes: Sequence[ScopePlan], first: ScopePlan, guide: str, below: str, full: bool) -> Iterator[Row]:
    label = index_ranges([scope.local for scope in scopes])
    kind = f"applied {first.applications} times" if first.applications > 1 else ""
    yield Row(guide, label, kind, "", first.total, times=len(scopes))
    yield from _chain(first.nodes, below, full)


def _unfolded(nodes: Sequence[NodePlan]) -> Iterator[NodePlan]:
    """The nodes as they are drawn: an inline chain adds nothing, so its layers stand in its place."""
    for node in nodes:
        if shows(node):
            yield node
        else:
            yield from _unfolded(node.scopes[0].nodes)


def shows(node: NodePlan) -> bool:
    """Whether a node is more than layers in order that have no name of their own."""
    return not (node.node.inline and isinstance(node.node.config, Topology) and node.node.config.inline == _CHAIN)


def index_ranges(names: Sequence[str]) -> str:
    """``0-7, 9``; names that are no numbers as they are."""
    if not all(name.isdigit() for name in names):
        return ", ".join(names)
    runs: list[list[int]] = []
    for number in map(int, names):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def _weights(weights: Mapping[str, Weight]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, weight.shape))}" for name, weight in weights.items())


def _cache_words(figures: Figures) -> str:
    words = f"{figures.cache_bytes:,}" if figures.cache_bytes else ""
    if figures.state_bytes:
        words += f"{' + ' if words else ''}{bytes_in_words(figures.state_bytes)} once"
    return words


# ------------------------------------------------------------------------------------------------ totals and runs


def _totals(plan: Plan) -> Table:
    model, total = plan.model, plan.model.total
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    weights = f"{total.parameters:,} parameters"
    if total.buffers:
        weights += f", {total.buffers:,} values in buffers"
    table.add_row("weights", f"{weights}: {bytes_in_words(total.weight_bytes)} in {model.dtype}")
    context = model.context
    table.add_row(
        "operations",
        f"{count_in_words(total.operations / context)} a token forward over {context:,} tokens "
        f"({count_in_words(total.causal_operations / context)} causal), "
        f"{count_in_words(training_operations(model) / context)} training, "
        f"{count_in_words(total.decoding_operations)} decoding behind {context:,}",
    )
    table.add_row("cache", _cache_line(plan))
    if plan.teacher is not None:
        teacher = plan.teacher.source
        if plan.teacher_model is None:
            teacher += f" is not on this machine ({plan.teacher.reason}): its size is not known"
        else:
            figures = plan.teacher_model.total
            teacher += (
                f": {figures.parameters:,} parameters, {bytes_in_words(figures.weight_bytes)} in {plan.teacher.dtype}"
            )
        table.add_row("teacher", teacher)
    return table


def _cache_line(plan: Plan) -> str:
    total = plan.model.total
    words = f"{_cache_words(total) or 0} bytes a token in {plan.model.dtype}"
    if total.cache_bytes:
        less = (plan.model.cached_bytes(1, Storage.named(name)) - total.state_bytes for name in ("int8", "int4"))
        words += f" ({next(less):,} in int8, {next(less):,} in int4)"
    if total.context_bytes < total.state_bytes + plan.model.context * total.cache_bytes:
        words += " until windows are full"
    words += f", {bytes_in_words(total.context_bytes)} at {plan.model.context:,} tokens"
    return "; ".join((words, *plan.facts())) if plan.teacher_model is not None else words


def _runs_table(plan: Plan, console: Console) -> Table:
    """Memory by purpose: a run a row, or where that is too wide a run a column."""
    heads = ("run", "trains", "shape", "weights", "teacher", "gradients", "optimizer", "saved*", "logits*", "total*")
    rows = []
    for run in plan.runs:
        memory = run.memory
        numbers = (
            memory.weights,
            memory.teacher,
            memory.gradients,
            memory.optimizer,
            memory.activations + memory.cast + memory.working + memory.cache,
            memory.logits,
            memory.total,
        )
        rows.append((run.id, _trains(run), _shape(run), *map(_bytes_cell, numbers)))
    table = _table(heads, rows, right=range(3, len(heads)))
    if console.measure(table, options=console.options.update(width=_ENDLESS)).maximum > console.width:
        first, *others = zip(heads, *rows, strict=True)
        table = _table(first, others, right=range(1, len(first)))
    table.caption = "* estimates: what the pass saves and works with; an allocator's own overhead comes on top"
    if plan.teacher is not None and plan.teacher_model is None:
        table.caption += "\nthe teacher's memory, and what the student shares with it, is not counted"
    table.caption_justify = "left"
    return table


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="dim", padding=(0, 1), pad_edge=False)
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index in right else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _trains(run: RunPlan) -> str:
    if not run.trains:
        return f"({run.mode})"
    return f"{', '.join(run.trains)}: {count_in_words(run.trained_parameters)}"


def _shape(run: RunPlan) -> str:
    return f"{run.batch_size} x {run.context:,} {run.dtype}"


def _bytes_cell(count: int | None) -> str:
    if count is None:
        return "?"
    return bytes_in_words(count) if count else ""
