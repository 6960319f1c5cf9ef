"""What ``caramba chat`` does: a conversation in a terminal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

import typer
from caramba_plugins_standard.chat_template import ChatTemplate, Message
from caramba_terminal.numbers import format_bytes

from caramba_core.errors import InputError
from caramba_plugins_decode.generating import Speed, Texts, Wanted, printable, tell_drafts, tokens_in_words
from caramba_plugins_decode.source import TextModel
from caramba_plugins_decode.text import Finish

__all__ = ["Chat", "converse"]

_HELP: Final = "/reset forgets the chat, /exit ends it; Ctrl-C stops an answer"
_PROMPT: Final = "> "


class Chat:
    """A conversation: its messages, and the session whose cache holds what was said so far."""

    def __init__(
        self, model: TextModel, texts: Texts, template: ChatTemplate, wanted: Wanted, system: str | None = None
    ) -> None:
        self.model = model
        self.texts = texts
        self.template = template
        self.wanted = wanted
        self.speed = Speed()
        self.stopped = False
        """While this is set, an answer ends behind its next token."""

        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._answers = 0
        self._said: tuple[str, list[int]] = ("", [])
        """The last prompt with its answer, and its tokens as they were computed."""

        self.messages = list(self._system)
        self.finish: Finish | None = None
        """Why the last answer ended."""

    def reset(self) -> None:
        """Forget everything but what the system was told."""
        self.messages = list(self._system)

    def ask(self, text: str) -> Iterator[str]:
        """The pieces of the answer to a message, as they come; both are part of the conversation then.

        Raises :class:`InputError` where the template refuses the message, or the model's context is full; the message
        is not part of the conversation then.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = self.template.render(messages)
        ids = self.model.checked(self._encoded(prompt))
        answer = self.wanted.answer(self.model, ids)
        seed = self.wanted.seed + self._answers
        self._answers += 1
        said = list(ids)
        for token in self.speed.watch(self.texts.tokens(ids, answer.most, self.wanted.sampling, seed)):
            said.append(token)
            yield answer.add(token)
            if answer.finish is None and self.stopped:
                yield answer.end("interrupted")
            if answer.finish is not None:
                break
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self.finish = answer.finish
        # an end token is the template's to write, and a stop text ends inside of a token
        self._said = (prompt + answer.text, said[:-1] if answer.finish == "end" else said)
        if answer.finish == "stop":
            self._said = ("", [])

    def _encoded(self, prompt: str) -> list[int]:
        """The tokens of a prompt: of what was said, those that were computed, though its text may have others.

        They stay where a special token separates them from the rest, whose tokens then do not depend on them.
        """
        ids = self.model.tokenizer.encode(prompt, special_tokens=True)
        text, said = self._said
        if said and prompt.startswith(text):
            rest = self.model.tokenizer.encode(prompt[len(text) :], special_tokens=True)
            if rest and ids[-len(rest) :] == rest:
                return [*said, *rest]
        return ids


def converse(chat: Chat) -> None:
    """Read messages and write answers until the user leaves: /exit, Ctrl-D, or Ctrl-C where no answer comes."""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - input() then edits lines, and remembers them

        typer.echo(f"[{chat.model.name}: {chat.wanted.words}; {_HELP}]", err=True)
    interrupts = 0
    while True:
        try:
            line = input(_PROMPT if sys.stdin.isatty() else "").strip()
            interrupts = 0
            if line == "/exit":
                break
            interrupts = _heed(chat, line)
        except (EOFError, _Left):
            typer.echo(err=True)
            break
        except KeyboardInterrupt:
            interrupts += 1
            typer.echo(err=True)
            if interrupts > 1:
                break
            typer.echo("[Ctrl-C once more, or /exit, ends the chat]", err=True)
    typer.echo(
        f"[{tokens_in_words(chat.speed.tokens)}{chat.speed.words}; cache {format_bytes(chat.texts.bytes)}"
        f"{tell_drafts(chat.texts)}]",
        err=True,
    )


def _heed(chat: Chat, line: str) -> int:
    """Do what a line asks for, or answer it; how often the user pressed Ctrl-C meanwhile."""
    if line == "/reset":
        chat.reset()
        typer.echo("[the chat begins anew]", err=True)
    elif line.startswith("/") and " " not in line:
        typer.echo(f"[there is no command {line}: {_HELP}]", err=True)
    elif line:
        try:
            _answer(chat, line)
        except InputError as error:
            typer.echo(f"error: {error}", err=True)
        return int(chat.stopped)
    return 0


def _answer(chat: Chat, line: str) -> None:
    """Write the answer to a message."""
    with _stopping(chat):
        for piece in chat.ask(line):
            typer.echo(printable(piece), nl=False)
            sys.stdout.flush()
    typer.echo()
    if chat.finish == "interrupted":
        typer.echo("[stopped]", err=True)
    elif chat.finish == "length":
        typer.echo(f"[cut at {chat.wanted.max_new_tokens:,} tokens: --max-new-tokens]", err=True)
    elif chat.finish == "context":
        typer.echo("[the model's context is full: /reset begins anew]", err=True)


class _Left(BaseException):
    """The user pressed Ctrl-C twice while an answer came."""


@contextmanager
def _stopping(chat: Chat) -> Iterator[None]:
    """Let Ctrl-C end the answer that comes, behind its token; a second one ends the chat at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if chat.stopped:
            raise _Left
        chat.stopped = True

    chat.stopped = False
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
