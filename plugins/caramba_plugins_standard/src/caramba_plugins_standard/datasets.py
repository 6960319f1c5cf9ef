"""Token arrays and texts as sources of tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from caramba_core.components import component, option
from caramba_core.datasets import Dataset, Tokens
from caramba_core.errors import InputError, InvalidValue
from caramba_core.places import expanded, named
from caramba_core.teachers import begin_of_text

if TYPE_CHECKING:
    from caramba_core.teachers import Tokenizer
    from caramba_plugins_standard.arrays import Shard
    from caramba_plugins_standard.chat_template import ChatTemplate

__all__ = ["Chats", "Mixture", "MixturePart", "TextFile", "Texts", "TokenArray"]

_WHOLE = (0.0, 1.0)
_HASHED_BYTES = 256 << 20
"""Files of up to this size are hashed when they are opened: it takes less than half a second."""
_CACHED_CHARACTERS = 1 << 20
"""Texts of so many characters are kept encoded: a second of work."""
_LEAST_SHARE = 1e-6
_ENCODED = 1
"""A number to raise when the same text and tokenizer come to give other ids."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
"""What a text is called beside its figures."""


@component
class _Part(Dataset):
    """Files, or a part of them."""

    part: tuple[float, float] = option(
        default=_WHOLE, help="which part is used: from this fraction of the tokens, the text or the chats, to that one"
    )

    def __attrs_post_init__(self) -> None:
        first, last = self.part
        if not 0.0 <= first < last <= 1.0:
            raise InvalidValue("part", f"[{first}, {last}] is no part", expected="[A, B] with 0 <= A < B <= 1")

    def _origin(self, name: object) -> str:
        return str(name) if self.part == _WHOLE else f"{name} [{self.part[0]:g}, {self.part[1]:g}]"


@component
class TokenArray(_Part):
    """Token ids in ``.npy`` files: one axis of integers each, read as they are needed.

    Several files follow each other in the order given, those of a pattern or folder in the order of their names.

    ``FILE.json`` beside a file, where it exists, tells ``tokenizer`` (its identity), ``vocab_size``, ``end_of_text``
    (the token that ends a document), ``tokens`` (how many) and ``sha256`` of the array.  Files of up to 256 MiB
    together are checked against all of it; of larger ones the number of tokens and a sample of the ids are checked at
    once, and the other ids as they are read.

    A file must stay as it is while a run reads it: each read looks for a change first, which ends the run with a
    sentence.  A file that is cut off within a read, which takes microseconds, ends the process (SIGBUS); one that is
    replaced by renaming another over it is safe.
    """

    path: str | tuple[str, ...] = option(
        help="a file, a pattern such as shards/*.npy, a folder of .npy files, or a list of these; relative to the "
        "manifest"
    )

    documents: bool = option(
        default=False,
        help="train on each document as if it stood alone: attention, positions and loss do not cross the token that "
        "ends it; calibration reads windows as they are",
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not self.path:
            raise InvalidValue("path", "the list is empty", expected="at least one file")

    def files(self) -> tuple[Path, ...]:
        """Files, folders and patterns."""
        return tuple(map(Path, _names(self.path)))

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The ids, memory-mapped."""
        from caramba_plugins_standard.arrays import ArrayTokens, Shard

        names = _names(self.path)
        shards = [Shard.of(path) for name in names for path in _arrays(folder / expanded(name))]
        note = _noted(shards)
        count = sum(len(shard.ids) for shard in shards)
        first, last = (int(count * fraction) for fraction in self.part)
        origin = self._origin(folder / expanded(names[0]))
        if len(names) > 1:
            origin = f"{origin} and {len(names) - 1} more"
        if first == last:
            raise InputError(f"{origin} holds no token of {count}")
        begin, used = 0, []
        for shard in shards:
            part = shard.part(first - begin, last - begin)
            used += [part] if len(part.ids) else []
            begin += len(shard.ids)
        separator = None
        if self.documents:
            separator = note.get("end_of_text", None if tokenizer is None else tokenizer.end_of_text)
            if separator is None:
                raise InputError(
                    f"{origin}: nothing says which token ends a document",
                    expected="end_of_text in the note beside an array, or in a teacher's tokenizer",
                    hint=f'write {{"end_of_text": ID}} into {shards[0].path}.json, or leave documents out',
                )
        found = ArrayTokens.of(used, tokenizer=note.get("tokenizer"), origin=origin, separator=separator)
        return found.checked(note.get("vocab_size"))


@component
class TextFile(_Part):
    """A UTF-8 text, encoded with the teacher's tokenizer.  Parts begin and end at line breaks.

    The ids of a longer text are kept in the user's cache folder for the next time.
    """

    path: str = option(help="the file, relative to the manifest")
    add_bos: bool | None = option(default=None, help="begin with BOS; as the checkpoint's tokenizer does if not given")
    special_tokens: bool = option(default=False, help="read what spells a special token as one; it is text otherwise")

    def files(self) -> tuple[Path, ...]:
        """The file."""
        return (Path(self.path),)

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The ids of the text."""
        from caramba_plugins_standard.encoding import Encoding, encode, id_type
        from caramba_plugins_standard.texts import is_json_lines, read_text
        from caramba_plugins_standard.token_cache import cached_ids

        path = _file(folder / expanded(self.path))
        if is_json_lines(path):
            raise InputError(
                f"{path} holds JSON lines, not one text",
                hint=f"make an array of their texts: caramba data prepare {path.name} -o FILE.npy --tokenizer ...",
            )
        if tokenizer is None:
            raise InputError(
                f"{path} is a text, and there is no tokenizer to encode it with",
                expected="a teacher whose checkpoint carries a tokenizer",
                hint="encode the text beforehand and give the .npy array instead",
            )
        text, origin = read_text(path), self._origin(path)
        first, last = (_line_start(text, fraction) for fraction in self.part)
        part = text[first:last]
        if not part:
            raise InputError(f"{origin} holds no text")
        bos = begin_of_text(tokenizer, self.add_bos, origin)
        facts = (_ENCODED, hashlib.sha256(part.encode()).hexdigest(), tokenizer.identity, self.special_tokens, bos)
        encoding = Encoding(add_bos=self.add_bos, special_tokens=self.special_tokens)
        ids = cached_ids(
            facts if len(part) >= _CACHED_CHARACTERS else None,
            lambda: encode([[part]], tokenizer, encoding, origin),
            id_type(tokenizer),
        )
        return Tokens(ids=ids, tokenizer=tokenizer.identity, origin=origin, parts=((path, *self.part),))


@component
class Chats(_Part):
    """Chats in JSON lines, written by the checkpoint's chat template: what the assistant says is learned, nothing else.

    Each line holds a list of ``{"role": ..., "content": ...}`` under ``column``.  Chats follow each other, and windows
    cut them as they cut texts.  An answer is what the template marks with ``{% generation %}``; where it marks nothing,
    it is what an assistant's message adds to the text, up to the token that ends a turn.  Ids and marks of larger files
    are kept in the user's cache folder for the next time.
    """

    path: str | tuple[str, ...] = option(help="a .jsonl file, a pattern, or a list of these; relative to the manifest")
    column: str = option(default="messages", help="key of the messages in each line")
    template: str | None = option(
        default=None, help="a file with another chat template (jinja2), relative to the manifest"
    )
    date: str | None = option(
        default=None,
        help="what the template takes as today, where it writes a date",
        pattern="[0-9]{4}-[0-9]{2}-[0-9]{2}",
        form="YYYY-MM-DD",
    )
    documents: bool = option(
        default=True, help="train on each chat as if it stood alone: attention, positions and loss stay within it"
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not self.path:
            raise InvalidValue("path", "the list is empty", expected="at least one file")
        if self.date is not None:
            try:
                datetime.fromisoformat(self.date)
            except ValueError as error:
                raise InvalidValue("date", str(error), expected="a day, YYYY-MM-DD") from error

    def files(self) -> tuple[Path, ...]:
        """The chats, and the template."""
        return tuple(map(Path, (*_names(self.path), *([] if self.template is None else [self.template]))))

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The ids of the chats, with marks."""
        from caramba_plugins_standard.chat_tokens import ChatTokens, chat_words, chats_of
        from caramba_plugins_standard.token_cache import cached_ids

        paths = [path for name in _names(self.path) for path in _found(folder / expanded(name))]
        origin = self._origin(paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more")
        if tokenizer is None:
            raise InputError(
                f"{origin} holds chats, and there is no tokenizer to encode them with",
                expected="a teacher whose checkpoint carries a tokenizer",
            )
        template = self._template(folder, tokenizer)
        facts: tuple[object, ...] | None = None
        if sum(path.stat().st_size for path in paths) >= _CACHED_CHARACTERS:
            hashes = tuple(_hash(path) for path in paths)
            how = (template.text, sorted(template.tokens.items()), self.column, self.date)
            facts = (_ENCODED, "chats", hashes, how, tokenizer.identity, sorted(tokenizer.stops))
        words = cached_ids(
            facts, lambda: chat_words(chats_of(paths, self.column), template, tokenizer, origin), "uint32"
        )
        return ChatTokens.of(
            words,
            self.part,
            apart=self.documents,
            tokenizer=tokenizer.identity,
            origin=origin,
            parts=((paths[0], *self.part),) if len(paths) == 1 else (),
        )

    def _template(self, folder: Path, tokenizer: Tokenizer) -> ChatTemplate:
        from caramba_plugins_standard.chat_template import ChatTemplate, chat_template_of, special_tokens
        from caramba_plugins_standard.loading.carried import CarriedTokenizer

        def today() -> datetime:
            if self.date is None:
                raise InputError(
                    f"{self._origin(self.path)}: the chat template writes today's date, and tomorrow another one",
                    expected="date: YYYY-MM-DD beside the path of the chats",
                    hint="the date that a model was trained with is best: 2024-07-26 for Llama 3.1 and 3.2",
                )
            return datetime.fromisoformat(self.date)

        name, companions = "the checkpoint", dict[str, str]()
        if isinstance(tokenizer, CarriedTokenizer):
            name, companions = tokenizer.name, dict(tokenizer.companions)
        if self.template is None:
            return chat_template_of(name, companions, now=today)
        path = _file(folder / expanded(self.template))
        return ChatTemplate(path.read_text(encoding="utf-8"), special_tokens(companions), str(path), now=today)


@component
class MixturePart:
    """A part of a mixture."""

    weight: float = option(help="how often it is drawn, relative to the other parts' weights", above=0.0)
    data: Dataset = option(help="its tokens")


@component
class Mixture(Dataset):
    """Windows of several datasets, drawn in proportion to their weights: for training and calibration.

    Each part has epochs of its own, in each of which every window of it comes once.
    """

    parts: tuple[MixturePart, ...] = option(help="datasets, each with a weight")

    def __attrs_post_init__(self) -> None:
        if not self.parts:
            raise InvalidValue("parts", "there is no part", expected="at least one dataset with a weight")
        total, least = sum(part.weight for part in self.parts), min(part.weight for part in self.parts)
        if not least / total >= _LEAST_SHARE:
            raise InvalidValue(
                "parts", f"a weight of {least:g} of {total:g} is too small", expected=f"{_LEAST_SHARE:g} of their sum"
            )

    def files(self) -> tuple[Path, ...]:
        """Those of all parts."""
        return tuple(file for part in self.parts for file in part.data.files())

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The parts' tokens, each with its weight."""
        from caramba_plugins_standard.mixtures import MixedTokens

        return MixedTokens.of([(part.weight, part.data.open(folder, tokenizer)) for part in self.parts])


@component
class Texts(Dataset):
    """Several texts to measure on, by name: mode eval gives figures of each, their mean and the worst.

    Perplexity as ``eval:`` says is of the first.
    """

    parts: dict[str, Dataset] = option(help="texts or arrays, each under the name that its figures have behind @")

    def __attrs_post_init__(self) -> None:
        if not self.parts:
            raise InvalidValue("parts", "there is no text", expected="at least one, under a name")
        for name in self.parts:
            if name in ("mean", "worst") or not _NAME.fullmatch(name):
                message = f"{name!r} cannot be the name of a text"
                form = "letters, digits, . _ - (no . or - in front), at most 100; not mean or worst"
                raise InvalidValue("parts", message, expected=form, within=(name,))

    def files(self) -> tuple[Path, ...]:
        """Those of all texts."""
        return tuple(file for part in self.parts.values() for file in part.files())

    def open(self, folder: Path, tokenizer: Tokenizer | None) -> Tokens:
        """The texts' tokens."""
        from caramba_plugins_standard.several_texts import SeveralTexts

        return SeveralTexts.of({name: part.open(folder, tokenizer) for name, part in self.parts.items()})


def _names(path: str | tuple[str, ...]) -> tuple[str, ...]:
    return (path,) if isinstance(path, str) else path


def _line_start(text: str, fraction: float) -> int:
    """The first line start at or behind this fraction of the text; its end where there is none."""
    place = int(len(text) * fraction)
    if place in (0, len(text)) or text[place - 1] == "\n":
        return place
    newline = text.find("\n", place)
    return len(text) if newline < 0 else newline + 1


def _file(path: Path) -> Path:
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {found}", expected="a file, relative to the manifest's folder")
    return path


def _found(path: Path) -> list[Path]:
    """The files of a name or pattern."""
    return list(map(_file, named(path) or [path]))


def _arrays(path: Path) -> list[Path]:
    """The files that a name stands for."""
    if not path.is_dir():
        return _found(path)
    inside = sorted(path.glob("*.npy"))
    if not inside:
        raise InputError(f"{path} holds no .npy file", expected="token arrays")
    return list(map(_file, inside))


def _noted(shards: Sequence[Shard]) -> dict[str, Any]:
    """What the notes beside files tell of their tokenizer; checks the files against the notes."""
    small = sum(shard.path.stat().st_size for shard in shards) <= _HASHED_BYTES
    facts: dict[str, tuple[Path, Any]] = {}
    for shard in shards:
        path, note = shard.path, _read_note(shard.path)
        if len(shard.ids) != note.get("tokens", len(shard.ids)):
            raise InputError(f"{path} holds {len(shard.ids)} tokens", expected=f"{note['tokens']}, as {path}.json says")
        if "sha256" in note and small:
            _check_hash(path, note["sha256"])
        for name in ("tokenizer", "vocab_size", "end_of_text"):
            other, value = facts.setdefault(name, (path, note[name])) if name in note else (path, None)
            if name in note and note[name] != value:
                raise InputError(
                    f"{path} and {other} were made with different tokenizers ({name} {note[name]} and {value})",
                    hint="token ids mean other texts there: make them again with one tokenizer",
                )
    return {name: value for name, (_, value) in facts.items()}


def _read_note(path: Path) -> dict[str, Any]:
    """What ``FILE.json`` tells, type-checked; empty where there is none."""
    file = path.with_name(f"{path.name}.json")
    if not file.exists():
        return {}
    if not file.is_file():
        raise InputError(f"{file} is not a file", expected="what data prepare wrote beside the array, or nothing")
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(note, dict):
        raise InputError(f"{file} holds no mapping", expected="tokenizer, vocab_size, tokens, sha256")
    for name, kind in (("tokenizer", str), ("vocab_size", int), ("end_of_text", int), ("tokens", int), ("sha256", str)):
        if name in note and type(note[name]) is not kind:
            raise InputError(f"{file}: {name} is {note[name]!r}", expected=f"{'text' if kind is str else 'an integer'}")
    return note


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_hash(path: Path, expected: str) -> None:
    found = _hash(path)
    if found != expected.lower():
        raise InputError(
            f"{path} has SHA-256 {found}",
            expected=f"{expected}, as {path}.json says",
            hint="fetch or make the file again",
        )
