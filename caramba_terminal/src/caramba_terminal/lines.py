"""Reports of several lines, as a terminal shows them and as a pipe gets them."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from typing import TextIO

__all__ = ["coloured", "fitted"]


def coloured(text: str, stream: TextIO) -> str:
    """Colours for ``error:``, ``hint:``, ``expected:`` and ``note:``, if the stream is a terminal that wants them."""
    if not stream.isatty() or "NO_COLOR" in os.environ:
        return text
    red, cyan, plain = "\x1b[1;31m", "\x1b[36m", "\x1b[0m"
    text = re.sub(r"^[ =]*(hint|expected|note):.*", rf"{cyan}\g<0>{plain}", text, flags=re.MULTILINE)
    return re.sub(r"^([^\x1b\n]*?)error:", rf"\g<1>{red}error:{plain}", text, flags=re.MULTILINE)


def fitted(text: str, stream: TextIO) -> str:
    """Lines that fit, broken between words, if the stream is a terminal; a pipe gets them as they are."""
    return "\n".join(map(_broken, text.split("\n"))) if stream.isatty() else text


def _broken(line: str) -> str:
    """A line of a report as lines that fit the terminal; one that shows a manifest stays as it is."""
    if re.match(r"\s*\d* +\|", line):
        return line
    indent = " " * (len(line) - len(line.lstrip(" =")) + 2)
    width = shutil.get_terminal_size().columns
    lines = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines or [line])
