"""Pages from templates: texts are escaped, figures take the page's colours, nothing is requested."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
from caramba_terminal.numbers import format_average, format_bytes, format_count, format_duration
from markupsafe import Markup

from caramba_core.errors import InputError
from caramba_core.run.atomic import write_text
from caramba_plugins_report.plotting import INK, SERIES, SOFT

__all__ = ["file_name", "filled", "write_page"]


def filled(template: str, **words: Any) -> str:
    """A page of one of the package's templates."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("caramba_plugins_report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "inline": _inline,
        "count": format_count,
        "bytes": format_bytes,
        "average": format_average,
        "duration": format_duration,
        "cell": _cell,
    }
    return environment.get_template(template).render(**words)


def write_page(output: Path, page: str) -> None:
    """Write a page; it appears whole or not at all."""
    if output.is_dir():
        raise InputError(f"{output} is a folder", expected="the name of a file, such as report.html")
    write_text(output, page)


def _inline(svg: str, name: str, caption: str, classes: str = "") -> Markup:
    """An SVG element for the page: with the page's colours, ids of its own, and words for those who cannot see it."""
    box = re.search(r'viewBox="([-\d. ]+)"', svg)
    body = re.sub(r"^.*?<svg[^>]*>", "", svg, count=1, flags=re.DOTALL)
    prefix = f"{file_name(name)}-"
    body = re.sub(r'\bid="', f'id="{prefix}', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{prefix}", body)
    for colour, variable in ((INK, "ink"), (SOFT, "grid"), *((one, f"series-{at}") for at, one in enumerate(SERIES))):
        body = body.replace(colour, f"var(--{variable})")
    head = Markup('<svg class="{}" viewBox="{}" role="img" aria-label="{}">').format(
        classes, box[1] if box else "", caption
    )
    return head + Markup(body)


def file_name(name: str) -> str:
    """A name as one of files, without a suffix."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"
