"""Chat templates: messages to the text that a checkpoint was trained on, by the template that it carries.

Templates are programs of whoever made the checkpoint.  As in transformers, they run in jinja2's sandbox for immutable
values, with the same settings, filters and functions, so that the same template gives the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from caramba_plugins_decode.source import TextModel

__all__ = ["ChatTemplate", "Message", "chat_template_of"]

Message = Mapping[str, str]
"""``role`` (system, user or assistant) and ``content``."""

_SETTINGS: Final = "tokenizer_config.json"
_FILE: Final = "chat_template.jinja"
_SPECIAL: Final = "special_tokens_map.json"


class _Generation(Extension):
    """``{% generation %}``, by which templates mark what an assistant says; the text is what stands inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller: Macro) -> str:
        return str(caller())


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


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


class ChatTemplate:
    """A chat template; ``tokens`` are the special tokens that it may name: ``bos_token`` and others.

    Raises :class:`InputError` for a template that is no jinja2; ``origin`` is whose it is.
    """

    def __init__(self, text: str, tokens: Mapping[str, str], origin: str) -> None:
        self.tokens = tokens
        self.origin = origin
        try:
            self._template = _environment().from_string(text)
        except jinja2.TemplateError as error:
            raise InputError(f"{origin}: its chat template cannot be read: {error}") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of a chat, by default up to where the assistant's answer begins.

        Raises :class:`InputError` where the template refuses these messages.
        """
        given: dict[str, Any] = {"messages": [dict(message) for message in messages], "tools": None, "documents": None}
        try:
            return self._template.render(**given, add_generation_prompt=add_generation_prompt, **self.tokens)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise InputError(f"{self.origin}: its chat template refuses the chat: {error}") from error


def chat_template_of(model: TextModel) -> ChatTemplate:
    """The chat template that a model's checkpoint carries; raises :class:`InputError` where it has none."""
    settings = {name: model.files.get(name) or {} for name in (_SPECIAL, _SETTINGS)}
    text = model.files.get(_FILE) or settings[_SETTINGS].get("chat_template")
    if isinstance(text, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in text if isinstance(one, Mapping)}
        text = named.get("default")
    if not isinstance(text, str):
        raise InputError(
            f"{model.name} has no chat template: it was not trained to chat, or its template was lost",
            expected="chat_template.jinja or a chat_template in tokenizer_config.json; tokenizer.chat_template in GGUF",
            hint="caramba generate continues a text",
        )
    tokens = {}
    for key, value in (settings[_SPECIAL] | settings[_SETTINGS]).items():
        content = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(content, str):
            tokens[key] = content
    return ChatTemplate(text, tokens, model.name)
