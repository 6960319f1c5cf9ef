"""The model that a command names, and its tokenizer: of a run, a teacher of a manifest or preset, or a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import attrs
from caramba_plugins_standard.loading import Checkpoint, lower_checkpoint, open_source
from caramba_plugins_standard.opening import cache_named, is_run, load_checkpoint, open_checkpoint, open_run

from caramba_core.components import Attention, Storage
from caramba_core.errors import InputError
from caramba_core.graph import Graph
from caramba_core.lowered import lower_group
from caramba_core.manifest.load import load_manifest
from caramba_core.nn.language_model import LanguageModel
from caramba_core.places import expanded
from caramba_core.plugins.registry import registry
from caramba_core.run.checkpoint import read_state
from caramba_core.teachers import Tokenizer, begin_of_text

__all__ = ["Opening", "TextModel", "open_text_model"]

_MANIFESTS: Final = (".yml", ".yaml")


@attrs.frozen(kw_only=True)
class Opening:
    """How a model is opened.

    ``group`` is that of a manifest, ``step`` a run's checkpoint; ``tokenizer`` a checkpoint that carries one; ``cache``
    names a storage, or ``full``; ``dtype`` is the type of weights and computation.  What is ``None`` is as the run or
    checkpoint says.
    """

    group: str | None = None
    step: int | None = None
    tokenizer: str | None = None
    device: str = "auto"
    dtype: str | None = None
    cache: str | None = None
    context: int | None = None


@attrs.define(slots=False)
class TextModel:
    """A model with what turns text into its tokens and back.  Its weights are read when they are first asked for.

    Attributes:
        name: what the user called it.
        graph: the model's graph.
        tokenizer: its tokenizer.
        storage: how its cache stores keys and values, instead of what each attention says.
    """

    name: str
    graph: Graph
    _carrier: Checkpoint
    tokenizer: Tokenizer
    storage: Storage | None
    _context: int | None
    _load: Callable[[], LanguageModel]

    @cached_property
    def model(self) -> LanguageModel:
        """The model itself."""
        return self._load().eval().requires_grad_(False)

    @cached_property
    def companions(self) -> Mapping[str, str]:
        """The texts of the files beside the tokenizer, by name."""
        return self._carrier.companions()

    @cached_property
    def files(self) -> Mapping[str, Any]:
        """The JSON files among them, by name."""
        return {name: json.loads(text) for name, text in self.companions.items() if name.endswith(".json")}

    @cached_property
    def context(self) -> int | None:
        """Tokens that the model is made for, as the user or its configuration says; ``None`` where nobody does."""
        said = self.files.get("config.json", {}).get("max_position_embeddings")
        return self._context if self._context is not None else said if isinstance(said, int) and said > 0 else None

    @property
    def attentions(self) -> Mapping[str, Attention]:
        """The configs of its attentions, by name."""
        nodes = self.graph.attentions()
        return {name: node.config for name, node in nodes.items() if isinstance(node.config, Attention)}

    def encode(self, text: str, add_bos: bool | None = None) -> list[int]:
        """The tokens of a prompt, special tokens recognized, behind BOS where the tokenizer puts it.

        Raises :class:`InputError` for a text without tokens, and for one that leaves the model's context no room.
        """
        if not text:
            raise InputError("the prompt is empty", expected="a text")
        ids = [*begin_of_text(self.tokenizer, add_bos, "the prompt"), *self.tokenizer.encode(text, special_tokens=True)]
        return self.checked(ids)

    def checked(self, ids: list[int]) -> list[int]:
        """Tokens that the model can continue; raises :class:`InputError` where it cannot."""
        if not ids:
            raise InputError("the prompt holds no token", expected="a text")
        if max(ids) >= self.graph.vocab_size:
            raise InputError(f"token id {max(ids)} of the prompt is beyond the model's {self.graph.vocab_size} tokens")
        if self.context is not None and len(ids) >= self.context:
            raise InputError(
                f"the prompt has {len(ids):,} tokens, and the model a context of {self.context:,}",
                hint="--context N allows more, at the risk of poor text",
            )
        return ids

    def room(self, prompt: int, wanted: int) -> int:
        """How many of the ``wanted`` new tokens the context has room for behind a prompt of so many tokens."""
        return wanted if self.context is None else min(wanted, self.context - prompt)


def open_text_model(source: str, how: Opening) -> TextModel:
    """The model of a run's folder, of a manifest's or preset's teacher, or of a checkpoint.

    Raises :class:`InputError` where there is none, or no tokenizer.
    """
    here = expanded(source)
    if is_run(here):
        return _of_run(here, how)
    if how.step is not None:
        raise InputError(
            f"{source} is no run's folder, and has no checkpoint of step {how.step}", hint="leave --step out"
        )
    named = "://" not in source and not here.exists()
    if here.suffix in _MANIFESTS or (named and source in {entry.name for entry in registry().entries("preset")}):
        return _of_teacher(source, how)
    if how.group is not None:
        raise InputError(f"{source} is no manifest, and has no group {how.group!r}", hint="leave --group out")
    checkpoint = open_checkpoint(str(here) if "://" not in source else source)
    return _of_checkpoint(source, checkpoint, how, how.dtype or "float32")


def _of_run(folder: Path, how: Opening) -> TextModel:
    if how.group is not None:
        raise InputError(f"{folder} is a run's folder, which has one group", hint="leave --group out")
    opened = open_run(folder, how.step)
    carrier = opened.teacher() if how.tokenizer is None else open_source(how.tokenizer, Path())
    tokenizer = _tokenizer(str(folder), carrier)
    made_with = read_state(opened.checkpoint).get("tokenizer")
    if isinstance(made_with, str) and made_with != tokenizer.identity:
        raise InputError(
            f"{folder}: its tokens were made with another tokenizer ({made_with[:12]}) than this one "
            f"({tokenizer.identity[:12]})",
            hint="name a checkpoint that carries it: --tokenizer FILE, FOLDER or hf://org/repo",
        )
    assert carrier is not None  # which the tokenizer came from
    return TextModel(
        str(folder),
        lower_group(opened.loaded, opened.group),
        carrier,
        tokenizer,
        opened.evaluation.cache if how.cache is None else cache_named(how.cache),
        how.context,
        lambda: opened.model(how.device, how.dtype or opened.dtype),
    )


def _of_teacher(source: str, how: Opening) -> TextModel:
    """The teacher of a manifest's group: of the one that is named, or of all that have one, if it is the same."""
    loaded = load_manifest(source)
    teachers = {group.name: group.teacher for group in loaded.manifest.groups if group.teacher is not None}
    if how.group is not None and how.group not in teachers:
        problem = f"{source} has no group {how.group!r} with a teacher"
        raise InputError(problem, expected=", ".join(teachers) or "a group with teacher: {source: ...}")
    if not teachers:
        raise InputError(
            f"{source} names no teacher", expected="a group with teacher: {source: ...}, or a run's folder"
        )
    if how.group is None and len({teacher.source for teacher in teachers.values()}) > 1:
        raise InputError(f"the groups of {source} have several teachers", hint=f"--group {' or '.join(teachers)}")
    teacher = teachers[how.group or next(iter(teachers))]
    checkpoint = open_source(teacher.source, loaded.folder, sha256=teacher.sha256)
    return _of_checkpoint(teacher.source, checkpoint, how, how.dtype or teacher.dtype)


def _of_checkpoint(source: str, checkpoint: Checkpoint, how: Opening, dtype: str) -> TextModel:
    carrier = checkpoint if how.tokenizer is None else open_source(how.tokenizer, Path())
    return TextModel(
        source,
        lower_checkpoint(checkpoint),
        carrier,
        _tokenizer(source, carrier),
        None if how.cache is None else cache_named(how.cache),
        how.context,
        lambda: load_checkpoint(checkpoint, how.device, dtype),
    )


def _tokenizer(source: str, carrier: Checkpoint | None) -> Tokenizer:
    tokenizer = None if carrier is None else carrier.tokenizer()
    if tokenizer is None:
        raise InputError(
            f"{source} has no tokenizer to read a text with",
            hint="name a checkpoint that carries it: --tokenizer FILE, FOLDER or hf://org/repo",
        )
    return tokenizer
