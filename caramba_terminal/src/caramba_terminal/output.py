"""Standard output for data that a program reads: what child processes, threads and libraries write goes to stderr."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["data_alone"]

_STDOUT, _STDERR = 1, 2


class _OfMainThread(io.TextIOWrapper):
    def write(self, text: str) -> int:
        own = threading.current_thread() is threading.main_thread()
        return super().write(text) if own else sys.stderr.write(text)


@contextmanager
def data_alone(*, to_the_end: bool) -> Iterator[None]:
    """In the block, the main thread's ``sys.stdout`` alone writes to standard output; all else leads to stderr.

    ``to_the_end`` of the process nothing writes there behind the block.
    """
    stream = sys.stdout
    stream.flush()
    kept = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        writes_there = stream.fileno() == _STDOUT
    except OSError:  # it writes to memory
        writes_there = False
    with _OfMainThread(os.fdopen(kept, "wb"), encoding=stream.encoding, errors=stream.errors) as data:
        if writes_there:
            sys.stdout = data
        try:
            yield
        finally:
            sys.stdout = sys.stderr if to_the_end else stream
            data.flush()
            if not to_the_end:
                os.dup2(kept, _STDOUT)
