"""The values of GGUF tensors; blocks are dequantized by the library ``gguf``, a few rows at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from caramba_core.errors import InputError, PluginError
from caramba_plugins_llama.gguf_header import GgufTensor

__all__ = ["read_tensor", "rows_apart"]

_PLAIN: Final = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK: Final = 1 << 20
"""Values dequantized at a time: the library makes several float32 copies of them."""


def read_tensor(path: Path, tensor: GgufTensor) -> Tensor:
    """The values, in the stored type if that is a floating-point one, else in float32."""
    with path.open("rb") as file:
        file.seek(tensor.offset)
        if tensor.dtype in _PLAIN:
            values = torch.empty(tensor.shape, dtype=_PLAIN[tensor.dtype])
            if file.readinto(values.view(-1).view(torch.uint8).numpy()) != tensor.bytes:
                raise InputError(f"{path} ends inside {tensor.name}")
            return values
        return _dequantized(path, tensor, file.read(tensor.bytes))


def rows_apart(values: Tensor, heads: int) -> Tensor:
    """Rows ``(0, 1), (2, 3), ...`` of each head's rotary pairs as Hugging Face has them: half a head apart.

    ``[heads * d]`` or ``[heads * d, D]``.
    """
    return values.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _dequantized(path: Path, tensor: GgufTensor, data: bytes) -> Tensor:
    try:
        import gguf
    except ImportError as error:
        raise PluginError(
            f"{path}: {tensor.dtype} weights are read with the library gguf, which is not installed",
            hint="pip install 'caramba-plugins-llama[gguf]'",
        ) from error
    import numpy as np

    if len(data) != tensor.bytes:
        raise InputError(f"{path} ends inside {tensor.name}")
    kind = gguf.GGMLQuantizationType[tensor.dtype]
    columns = tensor.shape[-1]
    values = torch.empty(tensor.shape, dtype=torch.float32)
    flat = values.view(-1, columns).numpy()
    rows = len(flat)
    raw = np.frombuffer(data, dtype=np.uint8).reshape(rows, tensor.bytes // rows)
    step = max(1, _CHUNK // columns)
    with np.errstate(over="ignore", invalid="ignore"):  # infinite scales are found, and named, when a model is filled
        for first in range(0, rows, step):
            flat[first : first + step] = gguf.quants.dequantize(raw[first : first + step], kind)
    return values
