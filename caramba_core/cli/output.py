"""Standard output for data that a program reads: what child processes and libraries write there goes to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["data_alone"]

_STDOUT, _STDERR = 1, 2


@contextmanager
def data_alone() -> Iterator[None]:
    """In the block, ``sys.stdout`` alone writes to standard output; the file descriptor 1 leads to stderr."""
    stream = sys.stdout
    stream.flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        writes_there = stream.fileno() == _STDOUT
    except OSError:  # it writes to memory
        writes_there = False
    with os.fdopen(kept, "w", encoding=stream.encoding, errors=stream.errors) as data:
        if writes_there:
            sys.stdout = data
        try:
            yield
        finally:
            sys.stdout = stream
            data.flush()
            os.dup2(kept, _STDOUT)
