"""Runs beside one another as a page: perplexities, differences paired token by token, and a figure of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from caramba_plugins_report.comparing import Compared
from caramba_plugins_report.measured_figures import of_ratios
from caramba_plugins_report.records import names_of
from caramba_plugins_report.rendering import filled, write_page

__all__ = ["write_comparison"]


def write_comparison(compared: Sequence[Compared], output: Path) -> None:
    """Write the page about runs of which the first is the measure."""
    parts = [names_of(one.path) for one in compared]
    same = next((at for at in range(2) if len({one[at] for one in parts}) > 1), 2)
    names = ["/".join(one[same:]) for one in parts]
    drawing = of_ratios(compared, names)
    write_page(output, filled("comparison.html", rows=list(zip(names, compared, strict=True)), drawing=drawing))
