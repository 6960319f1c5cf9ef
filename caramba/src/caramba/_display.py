"""What rich can print, as text for terminals and as HTML for notebooks."""

from __future__ import annotations

import shutil
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Printed", "notebook_console"]

_PIPE_WIDTH = 120
_HTML_WIDTH = 140
_HTML = '<pre style="white-space: pre; line-height: 1.3; font-size: 90%">{code}</pre>'


class Printed:
    """Base of what shows itself by rich: as wide as the terminal there, with its colours in a notebook."""

    def _print(self, console: Console) -> None:
        raise NotImplementedError(f"{type(self).__name__} does not define _print")

    def __repr__(self) -> str:
        console = _recording(shutil.get_terminal_size((_PIPE_WIDTH, 24)).columns)
        self._print(console)
        return "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())

    def _repr_html_(self) -> str:
        console = _recording(_HTML_WIDTH)
        self._print(console)
        return console.export_html(code_format=_HTML, inline_styles=True)


def notebook_console() -> Console:
    """A console for progress: in notebooks with widgets where ipywidgets are installed, else as in a terminal."""
    from importlib.util import find_spec

    from rich.console import Console

    return Console(highlight=False, force_jupyter=None if find_spec("ipywidgets") else False)


def _recording(width: int) -> Console:
    from rich.console import Console

    return Console(file=StringIO(), record=True, width=width, highlight=False, force_jupyter=False)
