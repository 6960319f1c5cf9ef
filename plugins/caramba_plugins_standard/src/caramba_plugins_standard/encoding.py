"""Texts of any length to token ids, piece by piece: the ids of the whole text, in memory that does not grow with it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from caramba_core.errors import InputError
from caramba_core.teachers import begin_of_text

if TYPE_CHECKING:
    import numpy as np

    from caramba_core.teachers import Tokenizer

    Ids = np.ndarray[tuple[int], np.dtype[np.unsignedinteger[Any]]]

__all__ = ["Encoding", "encode", "id_type", "pieces"]

_PIECE: Final = 1 << 14
"""Characters of a piece: enough that looking for its end costs little."""

_AROUND: Final = 128
"""Characters on either side of a cut that are encoded with and without it."""

_TRIES: Final = 16
"""Places that are tried for a cut before more text is taken into the piece."""

_BATCH: Final = 1 << 20
"""Characters that are encoded at once: their ids and what the tokenizer keeps of them take some 100 MB."""

_AT_ONCE: Final = 2
"""Batches that are encoded at once: the end of one, which has no work for every core, overlaps with the next."""

_CUTS: Final = (re.compile(r"(?<=\S)\n(?=\S)"), re.compile(r"(?<=\S)(?= \S)"), re.compile(r"(?<=\S) (?=\S)"))
"""Behind a line break, before a space, or in place of one: SentencePiece puts one before every text, so every piece."""


@attrs.frozen(kw_only=True)
class Encoding:
    """How texts become token ids.

    Each begins with BOS where ``add_bos`` says so, or, if it is not given, where the checkpoint's tokenizer adds it.
    What spells a special token in a text is one only with ``special_tokens``.
    """

    add_bos: bool | None = None
    special_tokens: bool = False


def encode(
    texts: Iterable[Iterable[str]], tokenizer: Tokenizer, encoding: Encoding, origin: str, *, done: int = 0
) -> Iterator[Ids]:
    """The token ids of texts, in order, with the tokenizer's end of text between them.

    Each text comes as parts that follow each other.  ``origin`` names the texts in messages.  The first ``done``
    batches are left out: their texts are read and cut, and not encoded.
    """
    import numpy as np

    end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    bos = begin_of_text(tokenizer, encoding.add_bos, origin)
    for id_ in (*end, *bos):
        if id_ >= tokenizer.vocab_size:
            raise InputError(
                f"{origin}: the tokenizer begins or ends a text with token {id_}, which its vocabulary does not have",
                expected=f"an id below {tokenizer.vocab_size}",
                hint="correct the checkpoint's bos_token_id or eos_token_id",
            )

    def ids_of(batch: list[tuple[list[int], str]]) -> Ids:
        found = tokenizer.encode_batch([piece for _, piece in batch], special_tokens=encoding.special_tokens)
        rows = [np.array([*first, *ids], np.int64) for (first, _), ids in zip(batch, found, strict=True)]
        ids = np.concatenate(rows)
        assert ids.max(initial=0) < tokenizer.vocab_size, "a tokenizer's ids are below its vocab_size"
        return ids.astype(id_type(tokenizer))

    batches = islice(_batches(texts, tokenizer, encoding, bos, [*end, *bos]), done, None)
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # texts are read and ids written while others are encoded
        ahead = deque(pool.submit(ids_of, batch) for batch in islice(batches, _AT_ONCE))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(pool.submit(ids_of, batch) for batch in islice(batches, 1))


def _batches(
    texts: Iterable[Iterable[str]], tokenizer: Tokenizer, encoding: Encoding, before: list[int], between: list[int]
) -> Iterator[list[tuple[list[int], str]]]:
    """Pieces of texts, as many as are encoded at once, each with the ids that come before it."""
    held: list[tuple[list[int], str]] = []
    characters, cuts = 0, list(_CUTS)
    for text in texts:
        for number, piece in enumerate(pieces(text, tokenizer, cuts, special_tokens=encoding.special_tokens)):
            held.append(([] if number else before, piece))
            before, characters = between, characters + len(piece)
            if characters >= _BATCH:
                yield held
                held, characters = [], 0
    if held:
        yield held


def id_type(tokenizer: Tokenizer) -> Literal["uint16", "uint32"]:
    """The type of an array of a tokenizer's ids."""
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def pieces(
    parts: Iterable[str],
    tokenizer: Tokenizer,
    cuts: list[re.Pattern[str]] | None = None,
    *,
    special_tokens: bool = False,
) -> Iterator[str]:
    """A text, given as parts, in pieces whose token ids follow each other as those of the whole text.

    A cut is made where encoding the characters around it with and without the cut gives the same ids.  ``cuts`` are the
    kinds that are tried; the one that held comes first then, for the next text, too.
    """
    text, start, cuts = "", 0, list(_CUTS) if cuts is None else cuts
    for part in parts:
        text, start = text[start:] + part, 0
        wanted = _PIECE
        while len(text) - start >= wanted + _PIECE:
            found = _cut(text, start + wanted, cuts, tokenizer, special_tokens)
            if found is None:
                wanted += _PIECE
                continue
            end, following = found
            yield text[start:end]
            start, wanted = following, _PIECE
    if start < len(text):
        yield text[start:]


def _cut(
    text: str, first: int, cuts: list[re.Pattern[str]], tokenizer: Tokenizer, special_tokens: bool
) -> tuple[int, int] | None:
    """Where a piece ends and the next begins, at ``first`` or later; the kind of cut that held is tried first next."""
    for cut in tuple(cuts):
        for match in islice(cut.finditer(text, first, first + _PIECE - _AROUND), _TRIES):
            end, following = (match.end(), match.end()) if match[0] == "\n" else match.span()
            left, right = text[max(0, end - _AROUND) : end], text[following : following + _AROUND]
            whole, before, after = tokenizer.encode_batch(
                [text[max(0, end - _AROUND) : following + _AROUND], left, right], special_tokens=special_tokens
            )
            if whole == before + after:
                cuts.remove(cut)
                cuts.insert(0, cut)
                return end, following
    return None
