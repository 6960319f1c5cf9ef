"""Weights that ``torch.save`` wrote.  A pickle can hold code: torch's restricted reader alone ever sees one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caramba_core.errors import InputError

__all__ = ["load_pickled"]


def load_pickled(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a ``.bin`` or ``.pth`` file by key, mapped from the file where its format allows.

    Reads with ``weights_only=True`` and nothing else: what is neither tensor nor plain container is refused, not run.
    """
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_zipped(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged pickle fails in whatever way it likes
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "Unsupported global" in str(error) or "Unsupported operand" in str(error) or "weights_only" in str(error):
            what = "it holds objects other than tensors, which could run code and were not loaded"
        raise InputError(f"{path} is not a file of weights: {what}", hint="use the checkpoint's safetensors") from error
    tensors = dict(_flat(loaded, path))
    if not tensors:
        raise InputError(f"{path} holds no tensors")
    return tensors


def _flat(loaded: Any, path: Path) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path} holds {type(loaded).__name__}", expected="a mapping of names to tensors")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise InputError(f"{path}: its entry {str(key)[:80]!r} is not a dense tensor", expected="names to tensors")
        yield key, value.detach()


def _zipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
