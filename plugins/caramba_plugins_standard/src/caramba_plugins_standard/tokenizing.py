"""Token arrays: texts encoded once, with a note beside each array that says with which tokenizer.

``FILE.npy`` holds the ids, ``FILE.npy.json`` the tokenizer's identity, its size, counts and the array's hash; whoever
opens the array compares them with the model's tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from caramba_core.errors import InputError
from caramba_core.places import expanded, named
from caramba_plugins_standard.dataset_texts import DatasetTexts
from caramba_plugins_standard.encoding import Encoding, encode, id_type
from caramba_plugins_standard.loading import open_source, texts_at
from caramba_plugins_standard.partial_array import PartialArray, PartialFolder
from caramba_plugins_standard.texts import FileTexts, Texts, is_json_lines, looks_like_json_lines

__all__ = ["Prepared", "prepare", "texts_named"]

_ENCODED: Final = 2
"""A number to raise when the same texts and tokenizer come to give other ids, or others in a batch."""

_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*")
_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
_FILES: Final = frozenset({".txt", ".md", ".text", ".jsonl", ".ndjson", ".json", ".parquet", ".npy", ".gz", ".zst"})
"""What a missing file's name may end in; the name of a dataset does not."""


@attrs.frozen(kw_only=True)
class Prepared:
    """What was written: array or folder, how many tokens and documents, the tokenizer's identity, and what to mind.

    ``begun`` tokens were there from a call that had been killed.
    """

    path: Path
    tokens: int
    documents: int
    tokenizer: str
    warnings: tuple[str, ...]
    begun: int = 0


def texts_named(source: str, *, column: str = "text", subset: str | None = None, split: str = "train") -> list[Texts]:
    """The texts that a name stands for: a file or a pattern of files, a folder in a dataset's layout, or a dataset.

    A dataset on the hub has a name (``ORG/NAME``, ``@REVISION`` behind it) or an address (``hf://datasets/ORG/NAME``).

    Raises :class:`~caramba_core.errors.InputError` for a dataset that cannot be reached.
    """
    if _ADDRESS.fullmatch(source):
        return [texts_at(source, column=column, subset=subset, split=split)]
    path = expanded(source)
    if path.is_dir():
        return [DatasetTexts(name=str(path), location=str(path), column=column, subset=subset, split=split)]
    found = named(path)
    if not found and _HUB_NAME.fullmatch(source) and path.suffix.lower() not in _FILES:
        try:
            return [texts_at(f"hf://datasets/{source}", column=column, subset=subset, split=split)]
        except InputError as error:
            said = f"{source} is no file here, and no dataset that could be reached: {error.message}"
            raise InputError(said, expected=error.expected, hint=error.hint) from error
    return [FileTexts(file, column) for file in found or [path]]


def prepare(
    texts: Sequence[Texts],
    output: Path,
    source: str,
    *,
    encoding: Encoding | None = None,
    most: int | None = None,
    progress: Callable[[int, int], None] = lambda size, tokens: None,
) -> Prepared:
    """Encode texts with the tokenizer of the checkpoint ``source`` into the array ``output``, or a folder of arrays.

    A name that ends in ``.npy`` is one array.  Texts follow each other in the order given, with the tokenizer's end of
    text between them, where it has one; behind ``most`` tokens the rest is left out.  ``progress`` is told of bytes
    that were read and of tokens that were written.  Memory does not grow with the texts.  A call that was killed is
    gone on with by the next one, which gives the same arrays.

    Raises :class:`~caramba_core.errors.InputError` for a text that cannot be used; then nothing is written, and what a
    stream had given before stays for the next call.
    """
    note = output.with_name(f"{output.name}.json")
    if output.suffix not in ("", ".npy"):
        raise InputError(
            f"{output} does not end in .npy",
            hint="a manifest takes a name that ends in .npy as an array; one without an ending is a folder of them",
        )
    for path in (output, note):
        if path.exists():
            raise InputError(f"{path} exists already", hint="remove it, or name another")
    empty = [one.name for one in texts if one.size == 0]
    origin = ", ".join(one.name for one in texts)
    if len(empty) == len(texts):
        raise InputError(f"{origin}: there is no text")
    warnings = [f"{name} is empty, and left out" for name in empty]
    warnings += [
        f"{one.path} looks like JSON lines, and is encoded as it is, braces and keys included; name it .jsonl otherwise"
        for one in texts
        if isinstance(one, FileTexts) and one.size and not is_json_lines(one.path) and looks_like_json_lines(one.path)
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
    said = {**facts, "texts": [one.name for one in texts]}
    kind = PartialArray if output.suffix else PartialFolder
    array = kind(output, _key(texts, facts, encoding, most), said, id_type(tokenizer))
    begun = array.tokens
    progress(0, begun)
    try:
        all_texts = (text for one in texts for text in one.read(lambda size: progress(size, 0)))
        left = math.inf if most is None else most - begun
        for ids in encode(all_texts, tokenizer, encoding, origin, done=array.batches) if left > 0 else ():
            kept = ids if len(ids) <= left else ids[: int(left)]
            array.append(kept)
            progress(0, len(kept))
            left -= len(kept)
            if left <= 0:
                break
        tokens = array.tokens
        if not tokens:
            raise InputError(f"{origin}: there is no text")
        documents = array.publish()
    except InputError:
        if array.tokens and any(one.size is None for one in texts):
            array.close()  # a network that comes back gives the rest
        else:
            array.discard()
        raise
    except BaseException:
        array.close()
        raise
    return Prepared(
        path=output,
        tokens=tokens,
        documents=documents,
        tokenizer=tokenizer.identity,
        warnings=tuple(warnings),
        begun=begun,
    )


def _key(texts: Sequence[Texts], facts: Mapping[str, Any], encoding: Encoding, most: int | None) -> str:
    """A hash of all that the ids depend on."""
    seen = [one.facts for one in texts]
    said = json.dumps([_ENCODED, seen, dict(facts), attrs.asdict(encoding), most], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()
