"""Files of prompts: JSON lines, each a prompt or an object with one, read as they are needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import attrs
from caramba_document.suggestions import nearest, suggestion

from caramba_core.errors import InputError

__all__ = ["Prompt", "read_prompts"]

_LONGEST_LINE: Final = 1 << 26
"""Bytes of a line, which is read whole."""

_KEYS: Final = ("prompt", "id", "max_new_tokens")


@attrs.frozen(kw_only=True)
class Prompt:
    """One line of a file: the ``text`` to continue, or what is wrong with the line (``error``).

    ``id`` is whatever the line gives; ``max_new_tokens`` is ``None`` where it gives none.
    """

    line: int
    text: str = ""
    id: Any = None
    max_new_tokens: int | None = None
    error: str | None = None


def read_prompts(file: BinaryIO) -> Iterator[Prompt]:
    """The prompts of a file of JSON lines, one after the other; blank lines are left out.

    A line that holds no prompt gives one with an ``error``.
    """
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            while (more := file.readline(_LONGEST_LINE)) and not more.endswith(b"\n"):
                pass
            yield Prompt(line=number, error=f"the line is longer than {_LONGEST_LINE >> 20} MiB")
        elif line.strip():
            yield _prompt(line, number)


def _prompt(line: bytes, number: int) -> Prompt:
    found: Any = None
    try:
        found = json.loads(line.decode("utf-8-sig"))
        return _checked(found, number)
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start} of the line"
    except (ValueError, RecursionError) as error:
        problem = f"not JSON: {error}"
    except InputError as error:
        problem = error.message
    return Prompt(line=number, id=found.get("id") if isinstance(found, dict) else None, error=problem)


def _checked(found: Any, number: int) -> Prompt:
    """A line's prompt; raises :class:`InputError` where it holds none."""
    given = {"prompt": found} if isinstance(found, str) else found
    if not isinstance(given, dict):
        raise InputError('neither a string nor an object: each line is "TEXT" or {"prompt": "TEXT"}')
    for key in given:
        if key not in _KEYS and (near := nearest(key, _KEYS)):  # other keys are columns of a data set
            raise InputError(f"unknown key {key!r}{suggestion(near)}")
    text, count = given.get("prompt"), given.get("max_new_tokens")
    if not isinstance(text, str):
        raise InputError("there is no prompt" if "prompt" not in given else "the prompt is no text")
    if count is not None and (type(count) is not int or count < 1):
        raise InputError(f"max_new_tokens is {json.dumps(count)}, not a number of tokens from 1 on")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt holds half of a surrogate pair at {error.start}") from error
    return Prompt(line=number, text=text, id=given.get("id"), max_new_tokens=count)
