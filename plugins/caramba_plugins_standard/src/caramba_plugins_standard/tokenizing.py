"""Token arrays: texts encoded once, with a note beside the array that says with which tokenizer.

``FILE.npy`` holds the ids, ``FILE.npy.json`` the tokenizer's identity, its size and the array's hash; whoever opens the
array compares them with the model's tokenizer.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np

from caramba_core.errors import InputError
from caramba_core.loading import Tokenizer, open_source
from caramba_core.run.atomic import write_json
from caramba_plugins_standard.datasets import id_type, read_text

__all__ = ["Prepared", "prepare"]


@attrs.frozen(kw_only=True)
class Prepared:
    """What was written: the array, how many tokens it holds, and the identity of the tokenizer."""

    path: Path
    tokens: int
    tokenizer: str


def prepare(texts: Sequence[Path], output: Path, source: str) -> Prepared:
    """Encode UTF-8 ``texts`` with the tokenizer of the checkpoint ``source`` into the array ``output``.

    Texts follow each other in the order given, with the tokenizer's end of text between them, where it has one.
    Raises :class:`~caramba_core.errors.InputError` for a text that cannot be used; then nothing is written.
    """
    note = output.with_name(f"{output.name}.json")
    if output.suffix != ".npy":
        raise InputError(f"{output} does not end in .npy", hint="a manifest takes a name that ends in .npy as an array")
    for path in (output, note):
        if path.exists():
            raise InputError(f"{path} exists already", hint="remove it, or name another file")
    contents = [read_text(path) for path in texts]
    for path, text in zip(texts, contents, strict=True):
        if not text:
            raise InputError(f"{path} holds no text")
    tokenizer = open_source(source, Path()).tokenizer()
    if tokenizer is None:
        raise InputError(
            f"{source} carries no tokenizer", expected="a GGUF file, or a folder with tokenizer.json beside its weights"
        )
    ids = _encoded(contents, tokenizer)
    facts = {"tokenizer": tokenizer.identity, "vocab_size": tokenizer.vocab_size}
    output.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with os.fdopen(handle, "w+b") as file:
            np.save(file, ids, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        # the note first: an array never stands without it
        write_json(note, {**facts, "sha256": digest, "tokens": len(ids), "texts": [path.name for path in texts]})
        Path(temporary).replace(output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        note.unlink(missing_ok=True)
        raise
    return Prepared(path=output, tokens=len(ids), tokenizer=tokenizer.identity)


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]:
    parts: list[np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]] = []
    for index, text in enumerate(texts):
        if index and tokenizer.end_of_text is not None:
            parts.append(np.array([tokenizer.end_of_text], dtype=np.uint32))
        parts.append(np.array(tokenizer.encode(text), dtype=np.uint32))
    ids = np.concatenate(parts)
    return ids.astype(id_type(tokenizer, int(ids.max(initial=0))), copy=False)
