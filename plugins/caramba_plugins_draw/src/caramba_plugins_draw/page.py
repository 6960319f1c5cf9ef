"""A sketch as a page of its own: the picture, and under it every figure of the plan."""

from __future__ import annotations

from html import escape

from caramba_core.plan import ModelPlan
from caramba_plugins_draw.sketch import Sketch
from caramba_plugins_draw.svg import svg
from caramba_plugins_draw.terminal import model_rows

__all__ = ["page"]

_STYLE = """
body { font: 15px/1.5 "Helvetica Neue", Helvetica, Arial, sans-serif; color: #212529; }
body { margin: 0 auto; max-width: 1060px; padding: 0 16px; }
svg { max-width: 100%; height: auto; display: block; margin: auto; }
table { border-collapse: collapse; width: 100%; margin: 0 0 3rem; font-size: 13px; }
th { text-align: left; color: #6c757d; font-weight: 500; }
th, td { padding: 3px 10px 3px 0; border-bottom: 1px solid #e9ecef; vertical-align: top; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.w { color: #6c757d; } td:first-child { white-space: pre; }
.t { color: #3b5bdb; }
.g { color: #adb5bd; font-family: monospace; }
"""
_COLUMNS = ("node", "type", "width", "parameters", "operations per token{at}", "cached bytes per token{at}", "weights")
_NUMERIC = range(2, 6)


def page(sketch: Sketch, model: ModelPlan) -> str:
    """An HTML document that needs nothing else."""
    names = (name.format(at=f" at a context of {model.context:,}") for name in _COLUMNS)
    heads = "".join(f"<th{' class=n' if index in _NUMERIC else ''}>{name}</th>" for index, name in enumerate(names))
    rows = []
    for row in model_rows(model):
        label = escape(row.label) + (f" <b>\u00d7 {row.times}</b>" if row.times > 1 else "")
        cells = [
            f"<td><span class=g>{escape(row.guide)}</span>{label}</td><td class=t>{escape(row.type)}</td>",
            _number(row.width.replace("->", "\u2192")),
            *map(_number, (row.parameters, row.operations, row.cache)),
            f"<td class=w>{escape(row.weights)}</td>",
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(sketch.title)}</title>\n'
        f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style></head>\n<body>\n'
        f"{svg(sketch)}<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>\n"
        "</body></html>\n"
    )


def _number(text: str) -> str:
    return f"<td class=n>{escape(text)}</td>"
