"""File permissions that bind: for root too, who otherwise reads and writes everything."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

__all__ = ["permissions_bind"]

_VERSION_3 = 0x20080522
_PASSES_PERMISSIONS = 1 << 1 | 1 << 2
"""The capabilities CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, see capabilities(7)."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("thread", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def permissions_bind() -> Iterator[None]:
    """Inside, this thread is held to the permissions of files; skips the test where root cannot be."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root is held to no permissions here")
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    _call("capget", header, sets)
    held = sets[0].effective
    sets[0].effective = held & ~_PASSES_PERMISSIONS
    _call("capset", header, sets)
    try:
        yield
    finally:
        sets[0].effective = held
        _call("capset", header, sets)


def _call(name: str, header: _Header, sets: ctypes.Array[_Sets]) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(ctypes.byref(header), sets) != 0:
        pytest.skip(f"root is held to no permissions here: {name}: {os.strerror(ctypes.get_errno())}")
