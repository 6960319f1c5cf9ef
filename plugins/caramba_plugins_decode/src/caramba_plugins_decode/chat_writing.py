"""What ``caramba chats`` does: a model answers prompts, its own ones if none are given, as chats to train on."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Final

import attrs
import typer
from caramba_plugins_standard.chat_template import ChatTemplate, Message, messages_of
from caramba_plugins_standard.generation import Prompt, generate_stream
from caramba_plugins_standard.texts import json_objects, require_unicode
from caramba_terminal.reporter import Reporter
from rich.console import Console

from caramba_core.errors import InputError
from caramba_core.run.atomic import publish_file
from caramba_plugins_decode.generating import Wanted, tokens_in_words
from caramba_plugins_decode.source import TextModel

__all__ = ["ChatWriter", "Written", "prompts_of", "write_chats"]

_PLACE: Final = "\ufdd0"
"""Where the prompt stands while the text before it is looked for: Unicode has no character there."""

_ANSWERS: Final = 1 << 40
"""Added to the seeds of answers: they draw other numbers than prompts do."""

_FRUITLESS: Final = 32
"""Batches' worth of prompts none of which ends before it is said that this model makes none."""


def prompts_of(path: Path, system: str | None = None) -> list[tuple[str, list[Message]]]:
    """Chats that are to be answered, with their places, of a file of JSON lines.

    A line has a ``prompt``, behind ``system`` if that is given, or ``messages``, whose answers at the end are left out.
    Raises :class:`InputError` for any other.
    """
    found: list[tuple[str, list[Message]]] = []
    for place, line in json_objects(path):
        if "messages" in line:
            messages: list[Message] = list(messages_of(line["messages"], f"{place}: messages"))
            while messages and messages[-1]["role"] == "assistant":
                messages.pop()
            if not messages:
                raise InputError(f"{place}: there is nothing to answer", expected="a message of the user's")
        elif isinstance(line.get("prompt"), str):
            require_unicode(line["prompt"], f"{place}: prompt")
            messages = [*_told(system), {"role": "user", "content": line["prompt"]}]
        else:
            keys = ", ".join(map(repr, line)) or "none"
            raise InputError(
                f"{place}: there is no prompt; its keys: {keys}", expected='{"prompt": "TEXT"} or {"messages": [...]}'
            )
        found.append((place, messages))
    if not found:
        raise InputError(f"{path} holds no prompt", expected='{"prompt": "TEXT"} or {"messages": [...]} in each line')
    return found


@attrs.frozen(kw_only=True)
class Written:
    """A chat whose last message is the model's answer.

    ``finish`` says why it ended (``end``, ``length``, ``context``); ``tokens`` are those of the answer.
    """

    messages: list[Message]
    finish: str
    tokens: int


class ChatWriter:
    """Chats of a model by its template, ``batch_size`` at a time, each with draws of its own.

    ``made`` and ``dropped`` count the prompts that the model made itself, and those of them that did not end.
    """

    def __init__(self, model: TextModel, template: ChatTemplate, wanted: Wanted, batch_size: int) -> None:
        self.model = model
        self.template = template
        self.wanted = wanted
        self.batch_size = batch_size
        self.made = self.dropped = 0

    def encoded(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a chat, up to where the answer begins; :class:`InputError` where there is no room for one."""
        return self.model.checked(self.model.tokenizer.encode(self.template.render(messages), special_tokens=True))

    def answers(self, chats: Iterable[tuple[Sequence[Message], list[int]]]) -> Iterator[Written]:
        """The answers to chats with their tokens, in their order; chats are asked for as answers end."""
        asked = deque[tuple[Sequence[Message], Prompt]]()

        def prompts() -> Iterator[Prompt]:
            for number, (messages, ids) in enumerate(chats):
                room = self.model.room(len(ids), self.wanted.max_new_tokens)
                prompt = Prompt(ids, room, self.wanted.seed + _ANSWERS + number)
                asked.append((messages, prompt))
                yield prompt

        for said in self._continued(prompts()):
            messages, prompt = asked.popleft()
            text, ended = self._text(said)
            finish = "end" if ended else "length" if prompt.most == self.wanted.max_new_tokens else "context"
            answer: Message = {"role": "assistant", "content": text}
            yield Written(messages=[*messages, answer], finish=finish, tokens=len(said))

    def prompts(self, system: str | None, most: int) -> Iterator[tuple[list[Message], list[int]]]:
        """Chats that the model makes itself: what it says in the user's place, in at most so many tokens.

        One that does not end, or says nothing, is dropped.  Raises :class:`InputError` where that is so of all.
        """
        opening = self.model.checked(self._opening(system))
        room = self.model.room(len(opening), most)
        fruitless = 0
        for said in self._continued(Prompt(opening, room, self.wanted.seed + number) for number in count()):
            text, ended = self._text(said)
            text = text.strip()
            self.made += 1
            if ended and text:
                fruitless = 0
                messages = [*_told(system), {"role": "user", "content": text}]
                yield messages, self.encoded(messages)
                continue
            self.dropped += 1
            fruitless += 1
            if fruitless == _FRUITLESS * self.batch_size:
                raise InputError(
                    f"{self.model.name} makes no prompts: none of {fruitless:,} ended within {most:,} tokens",
                    expected="a model that was trained on chats",
                    hint="give prompts in a file (--file), or allow longer ones (--max-prompt-tokens)",
                )

    def _opening(self, system: str | None) -> list[int]:
        """The tokens before what a user says first."""
        text = self.template.render([*_told(system), {"role": "user", "content": _PLACE}])
        if text.count(_PLACE) != 1:
            raise InputError(
                f"{self.template.origin}: its chat template does not write what a user says once, as it stands, so "
                "that the model cannot speak in the user's place",
                hint="give prompts in a file (--file)",
            )
        return self.model.tokenizer.encode(text.partition(_PLACE)[0], special_tokens=True)

    def _continued(self, prompts: Iterable[Prompt]) -> Iterator[list[int]]:
        """The new tokens behind each prompt."""
        return generate_stream(
            self.model.model,
            prompts,
            self.batch_size,
            storage=self.model.storage,
            stops=self.model.tokenizer.stops,
            sampling=self.wanted.sampling,
        )

    def _text(self, new: Sequence[int]) -> tuple[str, bool]:
        """The text of new tokens, and whether an end token is behind it."""
        ended = bool(new) and new[-1] in self.model.tokenizer.stops
        return self.model.tokenizer.decode(list(new[:-1] if ended else new)), ended


def write_chats(
    writer: ChatWriter,
    path: Path,
    prompts: Sequence[tuple[str, list[Message]]] | None,
    count: int | None,
    system: str | None,
    most: int,
) -> None:
    """Write answered chats as JSON lines, which appear under ``path`` once all are there; says how many on stderr.

    They answer the first ``count`` of the ``prompts``, or of such as the model makes itself, of ``most`` tokens.
    Raises :class:`InputError` for a prompt that has no room, before weights are read.
    """
    chats: Iterable[tuple[list[Message], list[int]]]
    if prompts is None:
        assert count is not None, "a model never ends to make prompts"
        total, chats = count, islice(writer.prompts(system, most), count)
    else:
        chats = [(messages, _placed(writer, messages, place)) for place, messages in prompts[:count]]
        total = len(chats)
    tokens = cut = 0
    began = time.perf_counter()
    reporter = Reporter(Console(stderr=True, highlight=False))
    with publish_file(path) as file, reporter.bar("chats", total, unit="chats") as bar:
        for chat in writer.answers(chats):
            line = {"messages": chat.messages, "finish": chat.finish}
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            cut += chat.finish != "end"
            tokens += chat.tokens
            bar.advance(1)
    said = f"{tokens_in_words(tokens)} at {tokens / (time.perf_counter() - began):,.0f} tokens/s, {cut:,} answers cut"
    made = f"; {writer.dropped:,} of {writer.made:,} prompts did not end and are left out" if writer.made else ""
    typer.echo(
        f"wrote {path}: {total:,} chat{'' if total == 1 else 's'}, answers of {said}{made}; {writer.wanted.words}",
        err=True,
    )


def _placed(writer: ChatWriter, messages: Sequence[Message], place: str) -> list[int]:
    try:
        return writer.encoded(messages)
    except InputError as error:
        raise InputError(f"{place}: {error.message}", expected=error.expected, hint=error.hint) from error


def _told(system: str | None) -> list[Message]:
    return [] if system is None else [{"role": "system", "content": system}]
