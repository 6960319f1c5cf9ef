"""Samples of a run's training data as text: where documents begin, and which tokens are learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Final

from rich.text import Text

from caramba_core.errors import InputError
from caramba_core.manifest.load import load_manifest
from caramba_core.run.context import GroupContext
from caramba_core.run.experiment import Experiment
from caramba_core.teachers import Tokenizer
from caramba_plugins_standard.loading import open_source
from caramba_plugins_standard.marks import BEGINS, GIVEN, IDS
from caramba_plugins_standard.modes import Train
from caramba_plugins_standard.training.windows import Windows

__all__ = ["shown_samples"]

_CONTROL: Final = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)), "�")
"""What would steer a terminal, and what is shown instead; line breaks and tabs stay."""

_OPEN, _CLOSE = "⟦", "⟧"


def shown_samples(
    manifest: str,
    *,
    group: str | None,
    run: str | None,
    tokenizer: str | None,
    first: int,
    count: int,
    overrides: Sequence[str],
) -> Iterator[Text]:
    """Lines about the samples ``first`` to ``first + count - 1`` of the run that trains: the first of those chosen.

    What is learned stands in brackets where not all of it is.  Raises :class:`InputError` where no run trains.
    """
    loaded = load_manifest(manifest, overrides=overrides, fetch=True)
    chosen = Experiment(loaded, group=group, run=run).chosen
    found = next(((one, each) for one, each in chosen if isinstance(each, Train)), None)
    if found is None:
        raise InputError("no run that was chosen trains", expected="a run of mode train, which has samples")
    owner, training = found
    context = GroupContext.open(loaded, owner)
    decoder = context.tokenizer if tokenizer is None else open_source(tokenizer, loaded.folder).tokenizer()
    windows = Windows(context.tokens("train"), context=training.train.context, seed=training.seed)
    for index in range(first, first + count):
        words: list[int] = windows.words(index, 1)[0].tolist()
        name = f"sample {index:,} of {owner.name}/{training.id}"
        yield from _shown(name, words, decoder)


def _shown(name: str, words: list[int], tokenizer: Tokenizer | None) -> Iterator[Text]:
    """A sample, of which the last token is only predicted."""
    starts = [0, *(place for place, word in enumerate(words) if place and word & BEGINS), len(words)]
    learned = [bool(place) and not word & (BEGINS | GIVEN) for place, word in enumerate(words)]
    partly = any(word & GIVEN for word in words)
    facts = f"{len(words):,} tokens, {len(starts) - 1:,} document{'s' if len(starts) > 2 else ''}"
    yield Text(f"{name}: {facts}, {sum(learned):,} learned", style="bold")
    for number, (begin, end) in enumerate(pairwise(starts), 1):
        yield Text(f"--- document {number}: {end - begin:,} tokens, {sum(learned[begin:end]):,} learned", style="dim")
        line = Text()
        for is_learned, places in groupby(range(begin, end), key=learned.__getitem__):
            text = _decoded([words[place] & IDS for place in places], tokenizer)
            bracketed = partly and is_learned
            line.append(f"{_OPEN}{text}{_CLOSE}" if bracketed else text, style="green" if bracketed else "")
        yield line


def _decoded(ids: list[int], tokenizer: Tokenizer | None) -> str:
    return " ".join(map(str, ids)) + " " if tokenizer is None else tokenizer.decode(ids).translate(_CONTROL)
