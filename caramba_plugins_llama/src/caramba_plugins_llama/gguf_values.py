"""The values of GGUF tensors; blocks are dequantized by the library ``gguf``, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import torch
from caramba_plugins_standard.libraries import library
from torch import Tensor

from caramba_plugins_llama.gguf_header import PLAIN, GgufTensor
from caramba_plugins_llama.mapped_file import MappedFile

__all__ = ["values_of"]

_CHUNK: Final = 1 << 20
"""Values dequantized at a time: the library makes several float32 copies of them."""


def values_of(tensors: Iterable[GgufTensor]) -> Iterator[tuple[GgufTensor, Tensor]]:
    """The values of tensors: mapped, in the stored type if that is a floating-point one; else in float32."""
    file: MappedFile | None = None
    for tensor in tensors:
        if file is None or file.path != tensor.path:
            file = MappedFile(tensor.path)
        if tensor.dtype in PLAIN:
            dtype = getattr(torch, PLAIN[tensor.dtype])
            yield tensor, file.tensor(tensor.offset, tensor.shape, dtype, tensor.name)
        else:
            yield tensor, _dequantized(file, tensor)
        file.release(tensor.offset, tensor.bytes)


def _dequantized(file: MappedFile, tensor: GgufTensor) -> Tensor:
    why = f"{file.path}: {tensor.dtype} weights are read"
    gguf = library("gguf", why, extra="caramba-plugins-llama[gguf]")
    import numpy as np

    kind = gguf.GGMLQuantizationType[tensor.dtype]
    columns = tensor.shape[-1]
    values = torch.empty(tensor.shape, dtype=torch.float32)
    flat = values.view(-1, columns).numpy()
    rows = len(flat)
    raw = file.tensor(tensor.offset, (rows, tensor.bytes // rows), torch.uint8, tensor.name).numpy()
    step = max(1, _CHUNK // columns)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite scales are found, and named, when a model is filled
        for first in range(0, rows, step):
            flat[first : first + step] = gguf.quants.dequantize(raw[first : first + step], kind)
    return values
