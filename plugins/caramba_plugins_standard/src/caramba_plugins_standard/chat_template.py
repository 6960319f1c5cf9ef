"""Chat templates: messages to the text that a checkpoint was trained on, by the template that it carries.

Templates are programs of whoever made the checkpoint.  As in transformers, they run in jinja2's sandbox for immutable
values, with the same settings, filters and functions, so that the same template gives the same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from caramba_core.errors import InputError
from caramba_plugins_standard.texts import require_unicode

__all__ = ["ChatTemplate", "Message", "chat_template_of", "messages_of", "special_tokens"]

Message = Mapping[str, str]
"""``role`` (system, user or assistant) and ``content``."""

_SETTINGS: Final = "tokenizer_config.json"
_FILE: Final = "chat_template.jinja"
_SPECIAL: Final = "special_tokens_map.json"


_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
"""Around what an assistant says while it is looked for: Unicode has no characters there, and no text may hold them."""


class _Generation(Extension):
    """``{% generation %}``, by which templates mark what an assistant says; the text is what stands inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way
    used = False
    """Whether the template marks anything."""
    shown = False
    """Whether marks are part of the text."""

    def parse(self, parser: Parser) -> Node:
        self.used = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Macro) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}" if self.shown else str(caller())


class _Dict:
    """``dict`` in templates: the constructor, without the class that leads out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` in templates, without attributes that Python keeps to itself."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        own, *rest = args
        held = dict(*rest, **kwargs)
        for name in held:
            _require_plain(name)
        Namespace.__init__(own, held)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


def _require_plain(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace holds no {name!r}")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes for HTML of jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


class ChatTemplate:
    """A chat template; ``tokens`` are the special tokens that it may name: ``bos_token`` and others.

    ``now`` says what templates that write a date take as today.  Raises :class:`InputError` for a template that is no
    jinja2; ``origin`` is whose it is.
    """

    def __init__(
        self, text: str, tokens: Mapping[str, str], origin: str, *, now: Callable[[], datetime] = datetime.now
    ) -> None:
        self.text = text
        self.tokens = tokens
        self.origin = origin
        environment = _environment(now)
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise InputError(f"{origin}: its chat template cannot be read: {error}") from error
        marks = environment.extensions[_Generation.identifier]
        assert isinstance(marks, _Generation)
        self._marks = marks

    @property
    def marks_answers(self) -> bool:
        """Whether it says itself what an assistant's answer is (``{% generation %}``)."""
        return self._marks.used

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a chat, by default up to where the assistant's answer begins.

        Raises :class:`InputError` where the template refuses these messages.
        """
        given: dict[str, Any] = {"messages": [dict(message) for message in messages], "tools": None, "documents": None}
        try:
            return self._template.render(**given, add_generation_prompt=add_generation_prompt, **self.tokens)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise InputError(f"{self.origin}: its chat template refuses the chat: {error}") from error

    def answers(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a whole chat, and where in it the assistant's answers stand: ``[(first, behind the last)]``.

        They are what ``{% generation %}`` marks, or, in a template without it, what an assistant's message adds to the
        text of those before it.  Raises :class:`InputError` where that is no part of the whole text.
        """
        text = self.render(messages, add_generation_prompt=False)
        return text, self._marked(messages, text) if self._marks.used else self._added(messages, text)

    def _marked(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        self._marks.shown = True
        try:
            shown = self.render(messages, add_generation_prompt=False)
        finally:
            self._marks.shown = False
        found, place, first = [], 0, None
        for part in re.split(f"([{_OPEN}{_CLOSE}])", shown):
            if part == _OPEN and first is None:
                first = place
            elif part == _CLOSE and first is not None:
                found.append((first, place))
                first = None
            elif part not in (_OPEN, _CLOSE):
                place += len(part)
        if re.sub(f"[{_OPEN}{_CLOSE}]", "", shown) != text or first is not None:
            raise InputError(f"{self.origin}: its chat template changes what it marks with {{% generation %}}")
        return [(first, last) for first, last in found if first < last]

    def _added(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        found = []
        for index, message in enumerate(messages):
            if message.get("role") == "assistant":
                before = self.render(messages[:index])
                behind = self.render(messages[: index + 1], add_generation_prompt=False)
                if not (text.startswith(behind) and behind.startswith(before)):
                    raise InputError(
                        f"{self.origin}: message {index + 1} is written differently once the chat goes on, so that its "
                        "tokens cannot be told from others",
                        expected="a chat template that marks answers with {% generation %}, or writes them once and "
                        "for all",
                        hint="give such a template in a file (template:), or chats that end with their first answer",
                    )
                found.append((len(before), len(behind)))
        return found


def messages_of(found: Any, what: str) -> list[dict[str, Any]]:
    """The messages of a chat that JSON gave; raises :class:`InputError`, which names ``what``, for anything else."""
    expected = 'a list of {"role": "user" or the like, "content": "..."}'
    if not isinstance(found, list) or not found:
        raise InputError(f"{what} is {'empty' if found == [] else type(found).__name__}", expected=expected)
    for number, message in enumerate(found, 1):
        if not isinstance(message, Mapping):
            raise InputError(f"{what}: message {number} is {type(message).__name__}", expected=expected)
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                found = "missing" if key not in message else f"{type(message[key]).__name__}, not text"
                raise InputError(f"{what}: {key} of message {number} is {found}", expected=expected)
            require_unicode(message[key], f"{what}: {key} of message {number}")
    return found


def chat_template_of(
    name: str, companions: Mapping[str, str], *, now: Callable[[], datetime] = datetime.now
) -> ChatTemplate:
    """The chat template among the files of the checkpoint ``name``; raises :class:`InputError` where it has none.

    ``companions`` are the files' texts: those that :meth:`Checkpoint.companions` gives.
    """
    settings = {file: json.loads(companions.get(file, "{}")) for file in (_SPECIAL, _SETTINGS)}
    text = companions.get(_FILE) or settings[_SETTINGS].get("chat_template")
    if isinstance(text, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in text if isinstance(one, Mapping)}
        text = named.get("default")
    if not isinstance(text, str):
        raise InputError(
            f"{name} has no chat template: it was not trained to chat, or its template was lost",
            expected="chat_template.jinja or a chat_template in tokenizer_config.json; tokenizer.chat_template in GGUF",
            hint="caramba generate continues a text",
        )
    return ChatTemplate(text, special_tokens(companions), name, now=now)


def special_tokens(companions: Mapping[str, str]) -> dict[str, str]:
    """The special tokens that the files of a checkpoint name: ``bos_token``, ``eos_token`` and others."""
    found = {}
    for file in (_SPECIAL, _SETTINGS):
        for key, value in json.loads(companions.get(file, "{}")).items():
            content = value.get("content") if isinstance(value, Mapping) else value
            if key.endswith("_token") and isinstance(content, str):
                found[key] = content
    return found
