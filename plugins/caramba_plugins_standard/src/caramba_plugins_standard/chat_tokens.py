"""Chats as token ids: written by a chat template, one behind the other, with what the assistant says told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs
import numpy as np

from caramba_core.datasets import Ids
from caramba_core.errors import InputError
from caramba_core.teachers import Tokenizer
from caramba_plugins_standard.chat_template import ChatTemplate, messages_of
from caramba_plugins_standard.marks import BEGINS, GIVEN, Marked, MarkedTokens
from caramba_plugins_standard.texts import json_objects

if TYPE_CHECKING:
    Words = np.ndarray[tuple[int], np.dtype[np.uint32]]

__all__ = ["ChatTokens", "chat_words", "chats_of"]

_SHIFT: Final = 2
"""Marks are kept in the two highest of 32 bits: so many lower than ``caramba_plugins_standard.marks`` has them."""
_BEGINS: Final = BEGINS >> _SHIFT
_GIVEN: Final = GIVEN >> _SHIFT
_IDS: Final = _BEGINS - 1

_PIECE: Final = 1 << 16
"""Tokens of a piece that is hashed."""

_BATCH: Final = 1 << 20
"""Characters that are encoded at once."""

_MOVES: Final = 16
"""Characters by which the edge of an answer may move inwards to where a token begins or ends."""


@attrs.frozen
class _IdsOf:
    """The ids of words, without their marks."""

    words: Ids

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, place: slice) -> np.ndarray[Any, np.dtype[np.integer[Any]]]:
        return self.words[place] & _IDS


@attrs.frozen(kw_only=True, eq=False)
class ChatTokens(MarkedTokens):
    """Packed chats; ``words`` are uint32 ids with marks.  They are kept apart where ``apart`` says so."""

    has_marks: ClassVar[bool] = True
    """What users say is not learned."""

    words: Ids
    apart: bool

    @classmethod
    def of(cls, words: Ids, part: tuple[float, float], **facts: Any) -> ChatTokens:
        """The chats from one fraction of all chats to another."""
        if part != (0.0, 1.0):
            starts = [*np.flatnonzero(words[:] & _BEGINS).tolist(), len(words)]
            first, last = (starts[int((len(starts) - 1) * fraction)] for fraction in part)
            words = words[first:last]
        if not len(words):
            raise InputError(f"{facts['origin']} holds no chat")
        return cls(words=words, ids=_IdsOf(words), **facts)

    def marked(self, first: int, last: int) -> Marked:
        """The ids; a chat begins with the first of its tokens, and at ``first``."""
        marks = self.words[first:last].astype(np.int64) & ((_BEGINS if self.apart else 0) | _GIVEN)
        return self.read(first, last) | marks << _SHIFT

    @property
    def hash(self) -> str:
        """SHA-256 of the ids with their marks; of many, of a sample."""
        digest = hashlib.sha256(str(len(self.words)).encode())
        for first in self._sampled():
            digest.update(self.marked(first, first + _PIECE).tobytes())
        return digest.hexdigest()


def chats_of(paths: Iterable[Path], column: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The chats of files of JSON lines, under ``column`` of each line, with their places (``FILE:LINE``)."""
    for path in paths:
        for place, found in json_objects(path):
            if column not in found:
                keys = ", ".join(map(repr, found)) or "none"
                raise InputError(
                    f"{place}: there is no {column!r}; its keys: {keys}", hint="column names the key of the messages"
                )
            yield place, messages_of(found[column], f"{place}: {column}")


def chat_words(
    chats: Iterable[tuple[str, list[dict[str, Any]]]], template: ChatTemplate, tokenizer: Tokenizer, origin: str
) -> Iterator[Words]:
    """The tokens of chats with their marks.

    Raises :class:`InputError` where there is nothing to learn, or where it cannot be told from the rest.
    """
    assert tokenizer.vocab_size <= _IDS, "marks need two bits"
    held: list[tuple[str, str, list[tuple[int, int]]]] = []
    characters = learned = 0
    for place, messages in chats:
        try:
            text, answers = template.answers(messages)
        except InputError as error:
            raise InputError(f"{place}: {error.message}", expected=error.expected, hint=error.hint) from error
        held.append((place, text, answers))
        characters += len(text)
        if characters >= _BATCH:
            words = _words(held, template, tokenizer)
            learned += int(((words & _GIVEN) == 0).sum())
            yield words
            held, characters = [], 0
    if held:
        words = _words(held, template, tokenizer)
        learned += int(((words & _GIVEN) == 0).sum())
        yield words
    if not learned:
        raise InputError(
            f"{origin}: there is nothing to learn", expected='messages with the role "assistant" and a text'
        )


def _words(
    chats: Sequence[tuple[str, str, list[tuple[int, int]]]], template: ChatTemplate, tokenizer: Tokenizer
) -> Words:
    texts = []
    for _, text, answers in chats:
        cuts = [0, *(edge for answer in answers for edge in answer), len(text)]
        texts.append([text, *(text[first:last] for first, last in pairwise(cuts))])
    encoded = iter(tokenizer.encode_batch([part for parts in texts for part in parts], special_tokens=True))
    found = []
    for place, text, answers in chats:
        ids, pieces = next(encoded), [next(encoded) for _ in range(2 * len(answers) + 1)]
        edges = iter(_edges(ids, pieces, text, answers, tokenizer))
        words = np.array(ids, np.uint32) | np.uint32(_GIVEN)
        for first, last in answers:
            begin, end = next(edges), next(edges)
            if begin is None:
                begin = _moved(ids, text, range(first + 1, min(last, first + _MOVES)), tokenizer)
            if end is None:
                end = _moved(ids, text, range(last - 1, max(first, last - _MOVES), -1), tokenizer)
            if begin is None or end is None:
                raise InputError(
                    f"{place}: no token begins or ends near character {first if begin is None else last} of the chat "
                    f"as {template.origin} writes it, so that the answer there cannot be told from what is around it"
                )
            if not template.marks_answers:
                end = max((at + 1 for at in range(begin, end) if ids[at] in tokenizer.stops), default=end)
            words[begin:end] &= np.uint32(_IDS)
        if len(words):
            words[0] |= np.uint32(_BEGINS | _GIVEN)
        found.append(words)
    return np.concatenate(found)


def _edges(
    ids: list[int], pieces: list[list[int]], text: str, answers: Sequence[tuple[int, int]], tokenizer: Tokenizer
) -> list[int | None]:
    """How many tokens stand before each edge of an answer; ``None`` where a token lies over it.

    ``pieces`` are the tokens of the text cut at the edges: mostly, they are those of the whole text.
    """
    if ids == [id_ for piece in pieces for id_ in piece]:
        return list(accumulate(len(piece) for piece in pieces[:-1]))
    return [_edge(ids, text[:edge], tokenizer) for answer in answers for edge in answer]


def _edge(ids: list[int], before: str, tokenizer: Tokenizer) -> int | None:
    """The number of tokens of the text before an edge, if they are the first of the whole."""
    found = tokenizer.encode(before, special_tokens=True)
    return len(found) if ids[: len(found)] == found else None


def _moved(ids: list[int], text: str, edges: Iterable[int], tokenizer: Tokenizer) -> int | None:
    """The same of the first of some edges where a token begins; one over an edge is not the answer's alone."""
    found = (_edge(ids, text[:edge], tokenizer) for edge in edges)
    return next((count for count in found if count is not None), None)
