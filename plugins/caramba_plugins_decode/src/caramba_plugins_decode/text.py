"""From token ids, as they come, to text: characters that are complete, up to where the answer ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, Literal

from caramba_core.teachers import Tokenizer

__all__ = ["Answer", "Detokenizer", "Finish"]

Finish = Literal["end", "stop", "length", "context", "interrupted"]
"""Why an answer ended: an end token, a stop text, its most tokens, the model's context, the user."""

_BEFORE: Final = 6
"""Tokens before an answer that its first ones are decoded with."""

_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are no character yet."""

_MOST_PENDING: Final = 64
"""Tokens that may wait for their character: bytes that never become one are shown as such behind so many."""


class Detokenizer:
    """Decodes tokens one by one: what it gives adds up to the text of all of them.

    A character may be spread over several tokens, and how a token is spelled may depend on the one before (a space at
    the start of a text is dropped): so each is decoded together with those before, from ``prompt`` on.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-_BEFORE:])
        self._shown = len(self._ids)
        """How many of the ids are told already; the rest wait for their character to be complete."""

    def add(self, token: int) -> str:
        """The text that a token completes; empty where a character is still incomplete."""
        self._ids.append(token)
        before, now = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        complete = now.startswith(before) and not now.endswith(_INCOMPLETE)
        if not complete and len(self._ids) - self._shown < _MOST_PENDING:
            return ""
        return self._show()

    def flush(self) -> str:
        """The text of tokens that still wait, bytes without a character as U+FFFD."""
        return self._show() if len(self._ids) > self._shown else ""

    def _show(self) -> str:
        before, now = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        new = self._ids[self._shown :]
        text = now[len(before) :] if now.startswith(before) else self._decode(new)
        self._ids, self._shown = new, len(new)
        return text

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids) if ids else ""


class Answer:
    """One answer, fed with the tokens of a model until ``finish`` says why it ended.

    ``ends`` are the ids that end it, ``stops`` texts that do; neither is part of ``text``, and ``ended_by`` is the one
    that did.  ``most`` is how many tokens it may have, and ``limit`` why.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        most: int,
        limit: Finish = "length",
        ends: Collection[int] = (),
        stops: Sequence[str] = (),
    ) -> None:
        self.text = ""
        self.tokens = 0
        self.most = most
        self.finish: Finish | None = None
        self.ended_by: str | None = None
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._limit: Finish = limit
        self._ends = frozenset(ends)
        self._stops = tuple(stops)
        self._held = ""
        """Text that may be the beginning of a stop text."""

    def add(self, token: int) -> str:
        """The text that is certain to belong to the answer once this token came."""
        assert self.finish is None, "the answer has ended"
        self.tokens += 1
        if token in self._ends:
            self.ended_by = self._tokenizer.decode([token])
            return self.end("end")
        new = self._settled(self._detokenizer.add(token))
        if self.finish is None and self.tokens == self.most:
            new += self.end(self._limit)
        return new

    def end(self, finish: Finish) -> str:
        """End the answer; the text that was held back."""
        new = self._settled(self._detokenizer.flush())
        if self.finish is None:
            self.finish = finish
            self.text += self._held
            new += self._held
        return new

    def _settled(self, text: str) -> str:
        """What of the text held back and of more of it comes before any stop text."""
        text = self._held + text
        found = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, self.ended_by = min(found)
            self.finish, self._held = "stop", ""
            text = text[:place]
        else:
            held = max((_overlap(text, stop) for stop in self._stops), default=0)
            self._held = text[len(text) - held :]
            text = text[: len(text) - held]
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
