"""What a GGUF file says before its data: metadata and where each tensor lies (light; versions 2 and 3).

Layout: ``GGUF``, version, number of tensors, number of keys; then keys with typed values, tensors with their sizes;
data from the next multiple of ``general.alignment``.  Sizes are listed fastest axis first.  Every count and offset is
held against the length of the file before it is used, so that a damaged header cannot ask for memory.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn

import attrs

from caramba_core.errors import InputError

__all__ = ["MAGIC", "PLAIN", "TYPES", "UNREAD", "GgufHeader", "GgufTensor", "parts_of", "read_file", "read_header"]

MAGIC: Final = b"GGUF"

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9

TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
"""Number to name, values a block, bytes a block, of the types that are read: plain ones, and those that the library
``gguf`` dequantizes."""

UNREAD: Final = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    41: "Q1_0",
}
"""Types that GGUF has, or had, and that are not weights, or that nothing here dequantizes."""

PLAIN: Final = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The types whose values lie in the file as in memory, under torch's names."""


@attrs.frozen(kw_only=True)
class GgufTensor:
    """Where a tensor lies: ``shape`` slowest axis first (as torch has it), ``offset`` and ``bytes`` in ``path``."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    bytes: int


@attrs.frozen(kw_only=True)
class GgufHeader:
    """Metadata and tensors of a file, in the order of the file."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


_PART: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def parts_of(name: str) -> list[str]:
    """The files of the checkpoint that a file is part of, by llama.cpp's rule for names; itself if it is whole."""
    found = _PART.fullmatch(name)
    if found is None:
        return [name]
    return [f"{found['stem']}-{part:05}-of-{found['count']}.gguf" for part in range(1, int(found["count"]) + 1)]


def read_file(path: Path) -> GgufHeader:
    """The header of a file, or of all the parts of a split one, whichever of them ``path`` is.

    Metadata is the first part's.  Raises :class:`InputError` where one is damaged, missing, or of another checkpoint.
    """
    header = read_header(path)
    count = header.metadata.get("split.count", 1)
    if count in (0, 1):
        return header
    names = parts_of(path.name)
    if len(names) != count:
        raise InputError(
            f"{path} is one part of {count}, and its name does not tell the others'",
            expected=f"NAME-00001-of-{count:05}.gguf" if isinstance(count, int) else None,
            hint="give the parts their names back, or merge them (gguf-split --merge)",
        )
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise InputError(f"{path} is one part of {count}; missing: {', '.join(missing)}", hint="fetch all parts")
    parts = [read_header(path.parent / name) for name in names]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    for number, part in enumerate(parts):
        if part.metadata.get("split.no") != number or part.metadata.get("split.count") != count:
            raise InputError(f"{path.parent / names[number]} is not part {number + 1} of {count} of {path.name}")
    if len(tensors) != sum(len(part.tensors) for part in parts) or len(tensors) != parts[0].metadata.get(
        "split.tensors.count", len(tensors)
    ):
        raise InputError(f"{path.name}: its parts are of several checkpoints", hint="fetch all parts again")
    return GgufHeader(metadata=parts[0].metadata, tensors=tensors)


def read_header(path: Path) -> GgufHeader:
    """Read metadata and tensor table; raises :class:`InputError` with the place of the damage."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 24:
            raise InputError(f"{path} has {size} bytes, too few for a GGUF header")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).header()


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def header(self) -> GgufHeader:
        if self.take("4s")[0] != MAGIC:
            self.fail("it does not start with GGUF")
        (version,) = self.take("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            self.fail(
                f"it is {f'big-endian (version {swapped})' if swapped in (1, 2, 3) else f'version {version}'}",
                "version 2 or 3",
            )
        tensors, keys = self.take("QQ")
        self.bound(keys, 13, "keys")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.string()
            if key in metadata:
                self.fail(f"the key {key!r} stands twice")
            metadata[key] = self.value(self.take("I")[0])
        self.bound(tensors, 24, "tensors")
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment % 8:
            self.fail(f"general.alignment is {alignment!r}", "a multiple of 8")
        return GgufHeader(metadata=metadata, tensors=self.tensors(tensors, alignment))

    def tensors(self, count: int, alignment: int) -> dict[str, GgufTensor]:
        listed = []
        for _ in range(count):
            name = self.string()
            (rank,) = self.take("I")
            if not 1 <= rank <= 4:
                self.fail(f"tensor {name!r} has {rank} axes", "1 to 4")
            shape = tuple(reversed(self.take(f"{rank}Q")))
            listed.append((name, shape, *self.take("IQ")))
        base = -(-self.at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, shape, kind, offset in listed:
            if name in found:
                self.fail(f"tensor {name!r} stands twice")
            if kind not in TYPES:
                found_type = f"is a {UNREAD[kind]} tensor" if kind in UNREAD else f"has type {kind}, which is not known"
                raise InputError(
                    f"{self.path} is a sound GGUF file of a type that is not read: {name!r} {found_type}",
                    expected=", ".join(entry[0] for entry in TYPES.values()),
                    hint="use a file quantized otherwise, or the Hugging Face checkpoint",
                )
            dtype, block, size = TYPES[kind]
            values = 1
            for length in shape:
                values *= length
            if not values or shape[-1] % block:
                self.fail(f"tensor {name!r} of type {dtype} has shape {list(shape)}", f"rows of a multiple of {block}")
            span = values // block * size
            if offset % alignment or base + offset + span > len(self.data):
                self.fail(
                    f"tensor {name!r} lies at byte {base + offset} and takes {span}; the file ends at {len(self.data)}",
                    "data inside the file: it is cut off, or its header is damaged",
                )
            found[name] = GgufTensor(
                path=self.path, name=name, shape=shape, dtype=dtype, offset=base + offset, bytes=span
            )
        placed = sorted(found.values(), key=lambda tensor: tensor.offset)
        for before, after in pairwise(placed):
            if before.offset + before.bytes > after.offset:
                self.fail(f"tensors {before.name!r} and {after.name!r} overlap")
        return found

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.take("IQ")
            if inner in _SCALARS:
                self.bound(count, struct.calcsize(_SCALARS[inner]), "array items")
                return list(self.take(f"{count}{_SCALARS[inner]}"))
            if inner != _STRING:
                self.fail(f"an array has items of type {inner}", "numbers or strings")
            self.bound(count, 8, "array items")
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            self.fail(f"a value has type {kind}", "0 to 12")
        return self.take(_SCALARS[kind])[0]

    def string(self) -> str:
        (length,) = self.take("Q")
        self.bound(length, 1, "characters")
        self.at += length
        try:
            return self.data[self.at - length : self.at].decode("utf-8")
        except UnicodeDecodeError:
            self.fail("a string is not UTF-8")

    def take(self, layout: str) -> tuple[Any, ...]:
        layout = "<" + layout
        end = self.at + struct.calcsize(layout)
        if end > len(self.data):
            self.fail("the file ends inside its header")
        values = struct.unpack_from(layout, self.data, self.at)
        self.at = end
        return values

    def bound(self, count: int, smallest: int, what: str) -> None:
        """Refuse counts that the rest of the file cannot hold, before anything of that size is made."""
        if count * smallest > len(self.data) - self.at:
            self.fail(f"it claims {count} {what}, more than the file can hold")

    def fail(self, problem: str, expected: str | None = None) -> NoReturn:
        raise InputError(
            f"{self.path} is not a sound GGUF file: {problem} (byte {self.at})",
            expected=expected,
            hint="fetch the file again",
        )
