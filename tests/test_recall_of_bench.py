"""``bench/recall.py``: documents of an exact length, in which what is asked at the end was said before."""

from __future__ import annotations

import re

import numpy as np
import pytest
from caramba_plugins_eval.retrieval import NAMES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bench import recall


def texts() -> recall.Texts:
    """Sentences of made-up words, and a tokenizer that has a token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<end>": 0, **{byte: at for at, byte in enumerate(alphabet, 1)}}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    random = np.random.default_rng(1)
    words = ["".join(map(chr, random.integers(97, 123, int(random.integers(2, 9))))) for _ in range(200)]
    text = " ".join(f"{random.choice(words)} {random.choice(words)} {random.choice(words)}." for _ in range(3000))
    ids = np.array(tokenizer.encode(text).ids, dtype=np.uint16)
    return recall.Texts([ids, ids[:9000]], tokenizer)


@pytest.mark.parametrize("length", [1024, 2048, 4096])
def test_what_is_asked_was_said(length: int) -> None:
    made = texts()
    for seed in range(40):
        ids = recall.document(made, np.random.default_rng(seed), length)
        assert len(ids) == length
        assert ids.count(recall.END) == 1
        assert ids[-1] == recall.END
        body, _, quote = made.tokenizer.decode(ids).rpartition("\nAs it stands above: ")
        assert quote.removesuffix("<end>") in body
        last = [line for line in body.splitlines() if line][-1]
        answer = re.findall(r"[\w-]+", last)[-1]
        assert body.count(answer) >= 2, last


def test_facts_have_subjects_of_their_own() -> None:
    for seed in range(200):
        found = recall.facts(np.random.default_rng(seed), 9)
        assert all(answer.rstrip('"}') in told for told, _, answer in found)
        assert len({(told.split()[0], question) for told, question, _ in found}) == len(found)


def test_names_are_not_those_of_the_metric() -> None:
    ours = set(f"{recall.PEOPLE} {recall.THINGS} {recall.PLACES} {recall.KEYS} {recall.CITIES}".lower().split())
    assert not ours & set(NAMES.split())
