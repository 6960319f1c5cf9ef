"""How many threads linear algebra on the CPU takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """A block of factorizations of a few hundred rows on the CPU.

    They are done sooner than a pool of threads is woken, let alone a pool whose cores others use, too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
