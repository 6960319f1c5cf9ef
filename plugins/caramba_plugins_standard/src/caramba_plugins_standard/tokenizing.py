"""Token arrays: texts encoded once, with a note beside the array that says with which tokenizer.

``FILE.npy`` holds the ids, ``FILE.npy.json`` the tokenizer's identity, its size and the array's hash; whoever opens the
array compares them with the model's tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from caramba_core.errors import InputError
from caramba_plugins_standard.encoding import Encoding, encode, id_type
from caramba_plugins_standard.loading import open_source
from caramba_plugins_standard.partial_array import PartialArray
from caramba_plugins_standard.texts import is_json_lines, looks_like_json_lines, texts_of

__all__ = ["Prepared", "prepare"]

_ENCODED: Final = 2
"""A number to raise when the same texts and tokenizer come to give other ids, or others in a batch."""


@attrs.frozen(kw_only=True)
class Prepared:
    """What was written: the array, how many tokens it holds, the identity of the tokenizer, and what to mind.

    ``begun`` tokens were there from a call that had been killed.
    """

    path: Path
    tokens: int
    tokenizer: str
    warnings: tuple[str, ...]
    begun: int = 0


def prepare(
    files: Sequence[Path],
    output: Path,
    source: str,
    *,
    encoding: Encoding | None = None,
    column: str = "text",
    most: int | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> Prepared:
    """Encode the texts in ``files`` with the tokenizer of the checkpoint ``source`` into the array ``output``.

    A file is one text in UTF-8; a file of JSON lines (``.jsonl``, ``.ndjson``) is one text a line, under ``column``.
    Texts follow each other in the order given, with the tokenizer's end of text between them, where it has one; behind
    ``most`` tokens the rest is left out.  ``progress`` is told of bytes as they are read.  Memory does not grow with
    the texts.  A call that was killed is gone on with by the next one, which gives the same array.

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
    facts: dict[str, Any] = {"tokenizer": tokenizer.identity, "vocab_size": tokenizer.vocab_size}
    if tokenizer.end_of_text is not None:
        facts["end_of_text"] = tokenizer.end_of_text
    output.parent.mkdir(parents=True, exist_ok=True)
    origin = ", ".join(path.name for path in files)
    array = PartialArray(output, _key(files, facts, encoding, column), id_type(tokenizer))
    begun = array.tokens
    try:
        texts = (text for path in files for text in texts_of(path, column, progress))
        left = math.inf if most is None else most - begun
        for ids in encode(texts, tokenizer, encoding, origin, done=array.batches) if left > 0 else ():
            array.append(ids[: min(len(ids), left)])
            left -= len(ids)
            if left <= 0:
                break
        if not array.tokens:
            raise InputError(f"{origin}: there is no text")
        array.publish({**facts, "texts": [path.name for path in files]})
    except InputError:
        array.discard()
        raise
    except BaseException:
        array.close()
        raise
    return Prepared(
        path=output, tokens=array.tokens, tokenizer=tokenizer.identity, warnings=tuple(warnings), begun=begun
    )


def _key(files: Sequence[Path], facts: Mapping[str, Any], encoding: Encoding, column: str) -> str:
    """A hash of all that the ids depend on; of files their names, sizes and times."""
    seen = [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    said = json.dumps([_ENCODED, seen, dict(facts), attrs.asdict(encoding), column], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _size(path: Path) -> int:
    try:
        if not path.is_file():
            raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}", expected="a text file")
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
