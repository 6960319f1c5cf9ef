"""Plans in a terminal: the tree of the model, its totals, a table of the runs, and the tables that plugins add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
from caramba_terminal.numbers import format_average, format_bytes, format_count, format_indexes
from caramba_terminal.tables import plain_table, titled_table
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caramba_core.components import Head, Topology
from caramba_core.plan import Figures, ModelPlan, NodePlan, RunPlan
from caramba_core.plan.data import operations_per_token, plan_sections, quantized_cache

if TYPE_CHECKING:
    from caramba_core.plan import Plan

__all__ = ["Row", "drawn", "model_rows", "show"]

_T = TypeVar("_T")

_CHAIN = "caramba_core.nn.sequence:chain"
_ENDLESS = 10_000
_PIPE_WIDTH = 160
"""Columns of output that goes into a file or another program."""
_NARROW = 100
"""Columns of a terminal below which widths are shown of outputs alone."""
_WIDE = 120
"""Columns of a terminal from which on the shapes of weights have room beside the figures."""


def show(plans: Sequence[Plan], *, full: bool = False, console: Console | None = None) -> None:
    """Print plans, on stdout if no ``console`` is given; ``full`` spells repeated blocks out."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_PIPE_WIDTH)
    for index, plan in enumerate(plans):
        if index:
            console.rule(style="dim")
        console.print(Text(plan.title, style="bold"))
        console.print(_model_table(plan.model, console.width, full=full))
        console.print(_totals(plan))
        if plan.runs:
            console.print(_runs_table(plan, console))
            console.print(Text(_caption(plan), style="dim italic"))
        for section in plan_sections(plan):
            console.print(titled_table(section.title, section.columns, section.rows))


# ------------------------------------------------------------------------------------------------ the model


@attrs.frozen(kw_only=True)
class Row:
    """One line of the tree, as text.

    ``guide`` are the lines that lead to it, ``times`` says how often it is there.  ``operations`` and ``cache`` are
    per token; ``unnamed`` is true of an inline topology, whose label is its type.
    """

    guide: str = ""
    label: str
    type: str = ""
    width: str = ""
    parameters: str
    operations: str
    cache: str
    weights: str = ""
    times: int = 1
    unnamed: bool = False


def model_rows(model: ModelPlan, *, full: bool = False) -> Iterator[Row]:
    """The tree of a model, repeated blocks once with their count; ``full`` spells them out."""
    yield _row(model.total, model, label="model")
    yield from _rows(model.roots, "", model, full)


def _rows(nodes: Sequence[NodePlan], guide: str, model: ModelPlan, full: bool) -> Iterator[Row]:
    for node, lead, below in _branches(list(drawn(nodes)), guide):
        width_in, width_out = node.node.width_in, node.node.width_out
        tied = isinstance(node.node.config, Head) and node.node.config.tied
        yield _row(
            node.total,
            model,
            guide=lead,
            label=node.local or f"({node.type})",
            type=f"{node.type}, tied" if tied else node.type if node.local else "",
            width=f"{width_in:,}" if width_in == width_out else f"{width_in:,} -> {width_out:,}",
            weights=", ".join(f"{name} {'x'.join(map(str, weight.shape))}" for name, weight in node.weights.items()),
            unnamed=not node.local,
        )
        if len(node.scopes) == 1 and node.local in ("", node.scopes[0].local):
            yield from _rows(node.scopes[0].nodes, below, model, full)
            continue
        groups = [[scope] for scope in node.scopes] if full else node.alike()
        for group, scope_lead, scope_below in _branches(groups, below):
            yield _row(
                group[0].total,
                model,
                guide=scope_lead,
                label=format_indexes([scope.local for scope in group]),
                type=f"applied {group[0].applications} times" if group[0].applications > 1 else "",
                times=len(group),
            )
            yield from _rows(group[0].nodes, scope_below, model, full)


def _branches(items: Sequence[_T], guide: str) -> Iterator[tuple[_T, str, str]]:
    """Each item with the lines that lead to it, and those that pass it to what is below it."""
    for index, item in enumerate(items):
        last = index == len(items) - 1
        yield item, guide + ("└─ " if last else "├─ "), guide + ("   " if last else "│  ")


def _row(figures: Figures, model: ModelPlan, **rest: Any) -> Row:
    return Row(
        parameters=format_count(figures.parameters) if figures.parameters else "",
        operations=format_count(figures.operations / model.context) if figures.operations else "",
        cache=_cache_words(figures),
        **rest,
    )


def _cache_words(figures: Figures) -> str:
    words = [format_average(figures.cache_bytes)] if figures.cache_bytes else []
    if figures.state_bytes:
        words.append(f"{format_bytes(figures.state_bytes)} once")
    return " + ".join(words)


def drawn(nodes: Iterable[NodePlan]) -> Iterator[NodePlan]:
    """The nodes that a tree or picture shows: the layers of a plain list without a name stand in its place."""
    for node in nodes:
        config = node.node.config
        if node.node.inline and isinstance(config, Topology) and config.inline == _CHAIN:
            yield from drawn(node.scopes[0].nodes)
        else:
            yield node


def _model_table(model: ModelPlan, width: int, *, full: bool) -> Table:
    narrow, weights = width < _NARROW, full or width >= _WIDE
    table = Table(box=None, padding=(0, 1 if narrow else 2, 0, 0), header_style="dim")
    table.add_column("node", no_wrap=True)
    table.add_column("type", no_wrap=True, style="cyan")
    parameters, operations = ("params", "ops per\ntoken") if narrow else ("parameters", "operations\nper token")
    once = "\n+ once" if narrow and any(node.total.state_bytes for node in model.walk()) else ""
    at = f"\nat {model.context:,}"
    heads = ("width", parameters, f"{operations}{at}", f"cached bytes\nper token{at}{once}")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    if weights:
        table.add_column("weights", style="dim", overflow="fold")
    for row in model_rows(model, full=full):
        label = Text(row.guide, style="dim") + Text(row.label, style="italic dim" if row.unnamed else "")
        if row.times > 1:
            label.append(f"  x {row.times}", style="bold")
        shown_width = row.width.rpartition("-> ")[2] if narrow else row.width
        cache = row.cache.removesuffix(" once") if narrow and " + " in row.cache else row.cache
        cells = (row.type, shown_width, row.parameters, row.operations, cache)
        table.add_row(label, *cells, *([row.weights] if weights else []))
    return table


# ------------------------------------------------------------------------------------------------ totals and runs


def _totals(plan: Plan) -> Table:
    model, context = plan.model, f"{plan.model.context:,}"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("weights", _size(model))
    per_token = {name: format_count(count) for name, count in operations_per_token(model).items()}
    table.add_row(
        "operations",
        f"{per_token['forward']} per token forward over {context} tokens ({per_token['forward_causal']} causal), "
        f"{per_token['training']} training, {per_token['decoding']} decoding at a context of {context}",
    )
    table.add_row("cache", _cache_line(plan))
    if plan.teacher is not None:
        known = f" is not on this machine ({plan.teacher.reason}): its size is not known"
        if plan.teacher.model is not None:
            known = f": {_size(plan.teacher.model)}"
        table.add_row("teacher", plan.teacher.source + known)
    return table


def _size(model: ModelPlan) -> str:
    total = model.total
    buffers = f", {total.buffers:,} values in buffers" if total.buffers else ""
    return f"{total.parameters:,} parameters{buffers}, {format_bytes(total.weight_bytes)} in {model.dtype}"


def _cache_line(plan: Plan) -> str:
    model, total = plan.model, plan.model.total
    words = f"{format_average(total.cache_bytes)} bytes per token at a context of {model.context:,} in {model.dtype}"
    if total.cache_bytes:
        sizes = {name: size["bytes_per_token"] for name, size in quantized_cache(model).items()}
        others = (f"{format_average(size)} in {name}" for name, size in sizes.items() if size != total.cache_bytes)
        words += f" ({', '.join(others)})"
    if total.state_bytes:
        words += f" and {format_bytes(total.state_bytes)} once per sequence"
    words += f", {format_bytes(total.context_bytes)} in all"
    return "; ".join((words, *plan.facts())) if plan.teacher is not None and plan.teacher.model is not None else words


def _runs_table(plan: Plan, console: Console) -> Table:
    """Memory by purpose, one row per run; where that is too wide, one column per run."""
    heads = ("run", "trains", "shape", "weights", "teacher", "gradients", "optimizer", "saved*", "logits*", "total*")
    rows = [_run_cells(run) for run in plan.runs]
    table = plain_table(heads, rows, right=range(3, len(heads)))
    if console.measure(table, options=console.options.update(width=_ENDLESS)).maximum > console.width:
        first, *others = zip(heads, *rows, strict=True)
        table = plain_table(first, others, right=range(1, len(first)))
    return table


def _caption(plan: Plan) -> str:
    caption = "* estimates: what the pass saves and works with; an allocator's own overhead comes on top"
    if plan.teacher is not None and plan.teacher.model is None:
        caption += "\nthe teacher's memory, and what the student shares with it, is not counted"
    for run in plan.runs:
        if run.files:
            caption += f"\n{run.id} keeps up to {format_bytes(run.files)} in files beside its checkpoints"
    return caption


def _run_cells(run: RunPlan) -> tuple[str, ...]:
    memory = run.memory
    saved = memory.activations + memory.cast + memory.working + memory.cache
    sizes = (memory.weights, memory.teacher, memory.gradients, memory.optimizer, saved, memory.logits, memory.total)
    return (
        run.id,
        f"{', '.join(run.trains)}: {format_count(run.trained_parameters)}" if run.trains else f"({run.mode})",
        f"{run.batch_size} x {run.context:,} {run.dtype}",
        *("?" if size is None else format_bytes(size) if size else "" for size in sizes),
    )
