"""One safetensors file: its header, checked against the file before it is believed, and its values.

Read here rather than by the library: plans need shapes without torch, and every number of the header is held against
the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import attrs
from caramba_plugins_standard.loading import FileSpan, what_it_seems

from caramba_core.errors import InputError
from caramba_plugins_llama.json_file import parse_object

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TYPES", "UNREAD", "SafetensorsEntry", "looks_like_safetensors", "read_header", "same_bytes", "values_of"]

_LARGEST_HEADER: Final = 100_000_000
"""Bytes; the bound of the format itself."""

TYPES: Final = {
    "F64": (64, "float64"),
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E5M2": (8, "float8_e5m2"),
    "I64": (64, "int64"),
    "I32": (32, "int32"),
    "I16": (16, "int16"),
    "I8": (8, "int8"),
    "U8": (8, "uint8"),
    "BOOL": (8, "bool"),
}
"""Bits a value, and torch's name, of the types that are read."""
UNREAD: Final = {"U64": 64, "U32": 32, "U16": 16, "C64": 64, "F8_E8M0": 8, "F6_E3M2": 6, "F6_E2M3": 6, "F4": 4}
"""Bits a value of the format's other types, in which quantizers pack what stands for weights."""


@attrs.frozen(kw_only=True)
class SafetensorsEntry:
    """Where a tensor lies: bytes ``first`` to ``last`` of ``path``."""

    path: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int

    @property
    def span(self) -> FileSpan | None:
        """The same in the core's words; values of 8 bits are widened when they are read."""
        name = TYPES[self.dtype][1]
        return None if name.startswith("float8") else FileSpan(path=self.path, offset=self.first, dtype=name)


def looks_like_safetensors(path: Path) -> bool:
    """Whether a file starts as safetensors files do: a length, then a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def read_header(path: Path) -> tuple[SafetensorsEntry, ...]:
    """The tensors of a file, in the order of their bytes; raises :class:`InputError` where the header lies."""

    def fail(problem: str) -> NoReturn:
        raise InputError(f"{path} is not a sound safetensors file: {problem}", hint="fetch the file again")

    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 10:
                fail(what_it_seems(path) or f"it has {size} bytes")
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                fail(what_it_seems(path) or f"it claims a header of {length} bytes; {size - 8} follow")
            header = parse_object(file.read(length), f"{path}: its header")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    header.pop("__metadata__", None)
    base = 8 + length
    entries = []
    for key, value in header.items():
        problem, entry = _entry(path, key, value, base)
        if entry is None:
            fail(f"tensor {key!r} {problem}")
        entries.append(entry)
    entries.sort(key=lambda entry: (entry.first, entry.last))
    at = base
    for entry in entries:
        if entry.first != at:
            where = "inside the one before" if entry.first < at else f"and the one before ends at {at}"
            fail(f"tensor {entry.key!r} starts at byte {entry.first}, {where}")
        at = entry.last
    if at != size:
        fail(f"its tensors end at byte {at}, the file at {size}{': it is cut off' if at > size else ''}")
    unread = [f"{entry.key} ({entry.dtype})" for entry in entries if entry.dtype in UNREAD]
    if unread:
        raise InputError(
            f"{path} is a sound safetensors file with types that are not read: {', '.join(unread[:4])}"
            f"{', ...' if len(unread) > 4 else ''}",
            expected=", ".join(TYPES),
            hint="quantizers (MLX among them) pack weights so: use the unquantized checkpoint, or a GGUF",
        )
    return tuple(entries)


def same_bytes(a: SafetensorsEntry, b: SafetensorsEntry) -> bool:
    """Whether two tensors of one type and shape hold the same bytes."""
    with a.path.open("rb") as one, b.path.open("rb") as other:
        one.seek(a.first)
        other.seek(b.first)
        left = a.last - a.first
        while left > 0:
            size = min(left, 1 << 20)
            if one.read(size) != other.read(size):
                return False
            left -= size
    return True


def values_of(entries: Iterable[SafetensorsEntry]) -> Iterator[tuple[SafetensorsEntry, Tensor]]:
    """The values of tensors of one file or several, mapped, in the stored type."""
    import torch

    from caramba_plugins_llama.mapped_file import MappedFile

    file: MappedFile | None = None
    for entry in entries:
        if file is None or file.path != entry.path:
            file = MappedFile(entry.path)
        values = file.tensor(entry.first, entry.shape, getattr(torch, TYPES[entry.dtype][1]), entry.key)
        yield entry, values if entry.span is not None else values.float()
        file.release(entry.first, entry.last - entry.first)


def _entry(path: Path, key: str, value: Any, base: int) -> tuple[str, SafetensorsEntry | None]:
    """An entry of the header, or what is wrong with it."""
    if not isinstance(value, Mapping) or set(value) != {"dtype", "shape", "data_offsets"}:
        return "is not described by dtype, shape and data_offsets", None
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in {**TYPES, **UNREAD}:
        return f"has type {dtype!r}, which the format does not have", None
    if not _naturals(shape) or len(shape) > 8:
        return f"has shape {shape!r}", None
    if not _naturals(offsets) or len(offsets) != 2:
        return f"has data_offsets {offsets!r}", None
    bits = UNREAD[dtype] if dtype in UNREAD else TYPES[dtype][0]
    for axis in shape:
        bits *= axis
    wanted = -(-bits // 8)
    if offsets[1] - offsets[0] != wanted:
        return f"of type {dtype} and shape {shape} has {offsets[1] - offsets[0]} bytes instead of {wanted}", None
    return "", SafetensorsEntry(
        path=path, key=key, dtype=dtype, shape=tuple(shape), first=base + offsets[0], last=base + offsets[1]
    )


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
