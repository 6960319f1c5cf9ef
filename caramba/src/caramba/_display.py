"""What rich can print, as text for terminals and as HTML for notebooks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["notebook_console", "printed_html", "printed_text"]

_PIPE_WIDTH = 120
_HTML_WIDTH = 140
_HTML = '<pre style="white-space: pre; line-height: 1.3; font-size: 90%">{code}</pre>'


def printed_text(show: Callable[[Console], object]) -> str:
    """What ``show`` prints, as wide as the terminal."""
    console = _recording(shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns)
    show(console)
    return "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())


def printed_html(show: Callable[[Console], object]) -> str:
    """What ``show`` prints, with its colours."""
    console = _recording(_HTML_WIDTH)
    show(console)
    return console.export_html(code_format=_HTML, inline_styles=True)


def notebook_console() -> Console:
    """A console for progress: in notebooks with widgets where ipywidgets are installed, else as in a terminal."""
    from importlib.util import find_spec

    from rich.console import Console

    return Console(highlight=False, force_jupyter=None if find_spec("ipywidgets") else False)


def _recording(width: int) -> Console:
    from rich.console import Console

    return Console(file=StringIO(), record=True, width=width, highlight=False, force_jupyter=False)
