"""Token arrays: texts encoded once, with a note beside the array that says with which tokenizer.

``FILE.npy`` holds the ids, ``FILE.npy.json`` the tokenizer's identity, its size and the array's hash; whoever opens the
array compares them with the model's tokenizer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import attrs
import numpy as np

from caramba_core.errors import InputError
from caramba_core.run.atomic import publish_file, write_json
from caramba_plugins_standard.encoding import Encoding, encode, id_type
from caramba_plugins_standard.loading import open_source
from caramba_plugins_standard.texts import is_json_lines, looks_like_json_lines, texts_of

if TYPE_CHECKING:
    from caramba_plugins_standard.encoding import Ids

__all__ = ["Prepared", "prepare", "write_array"]


@attrs.frozen(kw_only=True)
class Prepared:
    """What was written: the array, how many tokens it holds, the identity of the tokenizer, and what to mind."""

    path: Path
    tokens: int
    tokenizer: str
    warnings: tuple[str, ...]


def prepare(
    files: Sequence[Path],
    output: Path,
    source: str,
    *,
    encoding: Encoding | None = None,
    column: str = "text",
    progress: Callable[[int], None] = lambda size: None,
) -> Prepared:
    """Encode the texts in ``files`` with the tokenizer of the checkpoint ``source`` into the array ``output``.

    A file is one text in UTF-8; a file of JSON lines (``.jsonl``, ``.ndjson``) is one text a line, under ``column``.
    Texts follow each other in the order given, with the tokenizer's end of text between them, where it has one.
    ``progress`` is told of bytes as they are read.  Memory does not grow with the texts.

    Raises :class:`~caramba_core.errors.InputError` for a text that cannot be used; then nothing is written.
    """
    note = output.with_name(f"{output.name}.json")
    if output.suffix != ".npy":
        raise InputError(f"{output} does not end in .npy", hint="a manifest takes a name that ends in .npy as an array")
    for path in (output, note):
        if path.exists():
            raise InputError(f"{path} exists already", hint="remove it, or name another file")
    empty = [path for path in files if not _size(path)]
    if len(empty) == len(files):
        raise InputError(f"{', '.join(map(str, files))}: there is no text")
    warnings = [f"{path} is empty, and left out" for path in empty]
    warnings += [
        f"{path} looks like JSON lines, and is encoded as it is, braces and keys included; name it .jsonl otherwise"
        for path in files
        if path not in empty and not is_json_lines(path) and looks_like_json_lines(path)
    ]
    tokenizer = open_source(source, Path()).tokenizer()
    if tokenizer is None:
        raise InputError(
            f"{source} carries no tokenizer", expected="a GGUF file, or a folder with tokenizer.json beside its weights"
        )
    encoding = encoding or Encoding()
    texts = (text for path in files for text in texts_of(path, column, progress))
    facts: dict[str, Any] = {"tokenizer": tokenizer.identity, "vocab_size": tokenizer.vocab_size}
    if tokenizer.end_of_text is not None:
        facts["end_of_text"] = tokenizer.end_of_text
    output.parent.mkdir(parents=True, exist_ok=True)
    origin = ", ".join(path.name for path in files)
    try:
        with publish_file(output) as file:
            tokens = write_array(file, encode(texts, tokenizer, encoding, origin), id_type(tokenizer))
            if not tokens:
                raise InputError(f"{origin}: there is no text")
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            # the note first: an array never stands without it
            write_json(note, {**facts, "sha256": digest, "tokens": tokens, "texts": [path.name for path in files]})
    except BaseException:
        note.unlink(missing_ok=True)
        raise
    return Prepared(path=output, tokens=tokens, tokenizer=tokenizer.identity, warnings=tuple(warnings))


def write_array(file: IO[bytes], parts: Iterator[Ids], dtype: str) -> int:
    """Write a one-dimensional ``.npy`` array whose values come in parts, and give their number.

    numpy leaves room in a header for a longer first axis, so that it can be written again once the length is known.
    """
    count = 0
    _write_header(file, count, dtype)
    begin = file.tell()
    for part in parts:
        assert part.dtype == dtype
        file.write(part.tobytes())
        count += len(part)
    file.seek(0)
    _write_header(file, count, dtype)
    assert file.tell() == begin
    file.seek(0, os.SEEK_END)
    return count


def _write_header(file: IO[bytes], count: int, dtype: str) -> None:
    header: dict[str, Any] = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def _size(path: Path) -> int:
    try:
        if not path.is_file():
            raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}", expected="a text file")
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
