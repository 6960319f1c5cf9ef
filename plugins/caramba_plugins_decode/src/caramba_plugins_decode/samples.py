"""What ``caramba samples`` does: texts that a model writes by itself, as an array of tokens to train on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from caramba_plugins_standard.encoding import id_type
from caramba_plugins_standard.generation import Prompt, generate_stream
from caramba_plugins_standard.partial_array import PartialArray
from caramba_terminal.reporter import Reporter
from rich.console import Console

from caramba_core.errors import InputError
from caramba_core.teachers import Tokenizer, begin_of_text
from caramba_plugins_decode.generating import Wanted, tokens_in_words
from caramba_plugins_decode.source import TextModel

__all__ = ["spoken_ids", "write_samples"]


def spoken_ids(tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """The ids below ``vocab_size`` that stand for text: none that are special, and none that are spelled as nothing."""
    ids = range(min(vocab_size, tokenizer.vocab_size))
    texts = [tokenizer.decode([id_]) for id_ in ids]
    plain, special = tokenizer.encode_batch(texts), tokenizer.encode_batch(texts, special_tokens=True)
    return [id_ for id_, text in zip(ids, texts, strict=True) if text and plain[id_] == special[id_]]


def write_samples(
    model: TextModel,
    path: Path,
    count: int,
    length: int,
    wanted: Wanted,
    batch_size: int,
    *,
    asked: Mapping[str, object],
) -> None:
    """Write ``count`` texts of ``length`` tokens each as an array with a note beside it; says how many on stderr.

    Each begins with BOS where the tokenizer puts it, and a token drawn evenly from those that stand for text; an end
    token ends none.  The array appears once it is whole; a call that was killed is gone on with by the next
    one that asks for the same; ``asked`` says how the model was opened.

    Raises :class:`InputError` for an output that exists or does not end in ``.npy``, and for texts that are longer than
    the model's context.
    """
    note = path.with_name(f"{path.name}.json")
    if path.suffix != ".npy":
        raise InputError(f"{path} does not end in .npy", hint="texts are written as an array of tokens")
    for there in (path, note):
        if there.exists():
            raise InputError(f"{there} exists already", hint="remove it, or name another")
    if model.context is not None and length > model.context:
        raise InputError(
            f"texts of {length:,} tokens are longer than the context of {model.name}, {model.context:,}",
            hint="--length N takes fewer, --context N allows more, at the risk of poor text",
        )
    tokenizer = model.tokenizer
    facts: dict[str, Any] = {"tokenizer": tokenizer.identity, "vocab_size": tokenizer.vocab_size}
    if tokenizer.end_of_text is not None:
        facts["end_of_text"] = tokenizer.end_of_text
    made_of = [model.name, dict(asked), count, str(model.storage), repr(wanted.sampling), wanted.seed, length, facts]
    path.parent.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    array = PartialArray(path, key, {**facts, "texts": [f"written by {model.name}"]}, id_type(tokenizer))
    done, began = array.batches, time.perf_counter()
    reporter = Reporter(Console(stderr=True, highlight=False))
    try:
        with reporter.bar("samples", count, unit="texts") as bar:
            bar.advance(done)
            for text in _texts(model, range(done, count), length, wanted, batch_size):
                array.append(np.array(text, dtype=id_type(tokenizer)))
                bar.advance(1)
        array.publish()
    except BaseException:
        if array.tokens:
            array.mark()
            array.close()
        else:
            array.discard()
        raise
    made, seconds = (count - done) * length, time.perf_counter() - began
    gone_on = f", {done:,} of them from a call before" if done else ""
    typer.echo(
        f"wrote {path}: {count:,} text{'' if count == 1 else 's'} of {tokens_in_words(length)}{gone_on}, at "
        f"{made / seconds:,.0f} tokens/s; {wanted.words}",
        err=True,
    )


def _texts(
    model: TextModel, numbers: Sequence[int], length: int, wanted: Wanted, batch_size: int
) -> Iterator[list[int]]:
    """Texts by number: each has a first token and draws of its own."""
    begin = begin_of_text(model.tokenizer, None, "a text")
    spoken = spoken_ids(model.tokenizer, model.graph.vocab_size)
    openings = [[*begin, spoken[_first(wanted.seed, number, len(spoken))]][:length] for number in numbers]
    prompts = [
        Prompt(opening, length - len(opening), wanted.seed + number)
        for number, opening in zip(numbers, openings, strict=True)
    ]
    if prompts and not prompts[0].most:
        yield from openings
        return
    new = generate_stream(model.model, prompts, batch_size, storage=model.storage, sampling=wanted.sampling)
    for opening, text in zip(openings, new, strict=True):
        yield [*opening, *text]


def _first(seed: int, number: int, count: int) -> int:
    return int(np.random.default_rng([seed, number]).integers(count))
