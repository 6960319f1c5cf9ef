"""Texts in which something said early is needed late: a part of the mixture that long windows are distilled on.

    python bench/recall.py DATA [--blocks 320]

DATA is what ``bench/texts.py`` wrote; ``train_recall.npy`` is added there: uint16, blocks of 4,096 tokens, each of one,
two or four documents.  A document is text of ``train.npy`` and ``train_kinds.npy`` (of four in ten a few sentences of
it, again and again) with facts between its sentences, and at its end what was asked of each: who has a room, the value
of a setting, a cell of a table, a field of a record, how a sentence went on.  Names, words and questions are not those
of the metrics ``retrieval`` and ``passkey``, of which nothing is here.  Everything follows from the seed, 0.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from tokenizers import Tokenizer

BLOCK = 4096
"""Tokens of the longest document."""

END = 0
"""The id behind each document."""

REPEATED = 0.4
"""The share of documents whose text is a few sentences, again and again."""

QUOTED = 24
"""Tokens of a sentence that is quoted."""

PEOPLE = (
    "Adler Baines Castillo Dorsey Eriksen Faulkner Grady Holloway Ibarra Jansen Kowalski Lindqvist Moreau Nakamura "
    "Oduya Petrov Quigley Rossi Sandoval Tanaka Ullman Vance Whitaker Yates Zeller"
)
THINGS = (
    "lantern parcel ledger violin tripod kettle saddle telescope carton microscope ladle suitcase helmet compass "
    "blanket trumpet barrel notebook cradle anvil"
)
PLACES = "attic cellar harbour library orchard station chapel stable workshop archive greenhouse tower"
KEYS = "timeout retries port depth buffer_size max_users cache_ttl workers threshold seed interval limit"
CITIES = "Lisbon Oslo Turin Ghent Krakow Dublin Basel Porto Riga Malmo Leeds Graz"

Fact = tuple[str, str, str]
"""A sentence, what is asked at the end, and the answer."""


def digits(random: Generator) -> str:
    """Two to seven of them."""
    return "".join(map(str, random.integers(0, 10, int(random.integers(2, 8)))))


def code(random: Generator) -> str:
    """Two letters and a number."""
    letters = "".join(chr(65 + int(at)) for at in random.integers(0, 26, 2))
    return f"{letters}-{int(random.integers(100, 1000))}"


def _rooms(subject: str, random: Generator) -> Fact:
    room = digits(random)
    return f"{subject} works in room {room}. ", f"In which room does {subject} work? In room ", room


def _extensions(subject: str, random: Generator) -> Fact:
    number = digits(random)
    return f"To reach {subject}, dial {number}. ", f"{subject} is reached by dialling ", number


def _homes(subject: str, random: Generator) -> Fact:
    city = str(random.choice(CITIES.split()))
    return f"{subject} moved to {city} last spring. ", f"Where did {subject} move? To ", city


def _stored(subject: str, random: Generator) -> Fact:
    place = str(random.choice(PLACES.split()))
    return f"Somebody left the {subject} in the {place}. ", f"Where is the {subject}? In the ", place


def _prices(subject: str, random: Generator) -> Fact:
    price = digits(random)
    return f"For the {subject} they paid {price} crowns. ", f"Price of the {subject}, in crowns: ", price


def _labels(subject: str, random: Generator) -> Fact:
    label = code(random)
    return f"The label on the {subject} reads {label}. ", f"What does the label on the {subject} read? ", label


def _settings(subject: str, random: Generator) -> Fact:
    value = digits(random)
    return f"\n{subject} = {value}\n", f"{subject} = ", value


def _records(subject: str, random: Generator) -> Fact:
    value = code(random)
    return f'\n{{"name": "{subject}", "code": "{value}"}}\n', f'{{"name": "{subject}", "code": "', f'{value}"}}'


def _cells(subject: str, random: Generator) -> Fact:
    value = digits(random)
    return f"\n| {subject} | {value} |\n", f"| {subject} | ", value


KINDS: Sequence[tuple[Sequence[str], Callable[[str, Generator], Fact]]] = (
    *((PEOPLE.split(), kind) for kind in (_rooms, _extensions, _homes, _records, _cells)),
    *((THINGS.split(), kind) for kind in (_stored, _prices, _labels, _cells)),
    (KEYS.split(), _settings),
)
"""What facts are about, and how they are told and asked."""


def facts(random: Generator, count: int) -> list[Fact]:
    """Of one or two kinds, each about another subject."""
    found: list[Fact] = []
    for which in random.permutation(len(KINDS))[:2]:
        subjects, kind = KINDS[int(which)]
        chosen = random.permutation(len(subjects))[: min(len(subjects), (count + 1) // 2)]
        found += [kind(subjects[at], random) for at in chosen]
    return found[:count]


class Texts:
    """Sentences of the training texts, as ids."""

    def __init__(self, arrays: Sequence[np.ndarray], tokenizer: Tokenizer) -> None:
        self.arrays, self.tokenizer = arrays, tokenizer
        pieces = (tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size()))
        self.ends = np.array([piece.rstrip(" ").endswith((".", "\n", "!", "?", ";", "}")) for piece in pieces])

    def ids(self, text: str) -> list[int]:
        """Of a fact or a question."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def sentences(self, random: Generator, count: int) -> list[list[int]]:
        """Consecutive sentences of about ``count`` tokens together."""
        array = self.arrays[int(random.integers(len(self.arrays)))]
        first = int(random.integers(len(array) - count - 512))
        taken = array[first : first + count + 512]
        cuts = np.flatnonzero(self.ends[taken]) + 1
        parts = [part.tolist() for part in np.split(taken, cuts)]
        found: list[list[int]] = []
        for part in parts[1:]:
            if sum(map(len, found)) >= count:
                break
            found.append([token for token in part if token != END])
        return [part for part in found if part] or [taken[taken != END].tolist()]

    def filler(self, random: Generator, count: int) -> list[list[int]]:
        """Sentences of ``count`` tokens, the last one cut: passages, or a few sentences again and again."""
        found: list[list[int]] = []
        few = self.sentences(random, 64) if random.random() < REPEATED else None
        while (left := count - sum(map(len, found))) > 0:
            for part in few or self.sentences(random, left):
                found.append(part[:left])
                left -= len(found[-1])
        return [part for part in found if part]


def document(texts: Texts, random: Generator, length: int) -> list[int]:
    """``length`` tokens: text with facts in it, then a line for each of them, and the end."""
    told = facts(random, int(random.integers(2, 5 + length // 340)))
    hidden = [texts.ids(fact) for fact, _, _ in told]
    quoted = max(texts.sentences(random, 8 * QUOTED), key=len)[: 2 * QUOTED]
    order = random.permutation(len(told))
    asked = [token for at in order for token in texts.ids(f"\n{told[at][1]}{told[at][2]}")]
    quote = [*texts.ids("\nAs it stands above: "), *quoted[:QUOTED]]
    filler = texts.filler(random, length - sum(map(len, hidden)) - len(quoted) - len(asked) - len(quote) - 1)
    places = sorted(random.integers(0, len(filler), len(hidden) + 1), reverse=True)
    for place, sentence in zip(places, [*hidden, quoted], strict=True):
        filler.insert(int(place), sentence)
    return [*(token for part in filler for token in part), *asked, *quote, END]


def main() -> None:
    """Write the array."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--blocks", type=int, default=320)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.data / "smollm2-135m" / "tokenizer.json"))
    arrays = [np.load(arguments.data / f"{name}.npy", mmap_mode="r") for name in ("train", "train_kinds")]
    texts, random = Texts(arrays, tokenizer), np.random.default_rng(0)
    ids: list[int] = []
    for _ in range(arguments.blocks):
        each = int(random.choice([1, 1, 2, 4]))
        for _ in range(each):
            ids += document(texts, random, BLOCK // each)
    path = arguments.data / "train_recall.npy"
    with path.open("wb") as file:
        np.save(file, np.array(ids, dtype=np.uint16))
    print(json.dumps({"event": "written", "file": path.name, "tokens": len(ids), "blocks": arguments.blocks}))


if __name__ == "__main__":
    main()
