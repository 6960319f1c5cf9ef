"""``bench/texts.py``: cleaning, deduplication, and the division into a mixture and held-out parts."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from bench import texts

VOCABULARY = [f"word{at}" for at in range(500)]


def words(seed: int, count: int = 200) -> str:
    """So many words, drawn from the vocabulary."""
    return " ".join(random.Random(seed).choices(VOCABULARY, k=count))


def tokenizer() -> Tokenizer:
    ids = {word: at for at, word in enumerate(["<end>", *VOCABULARY])}
    made = Tokenizer(models.WordLevel(ids, unk_token="<end>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


def test_a_page_keeps_its_text_without_what_leads_elsewhere() -> None:
    source = (
        "<html><head><title>Title</title></head><body><div class='navheader'><div>Home</div>Up</div>"
        "<h1>Chapter  one</h1>\n<p>Some\ntext &amp; more.</p><ul class='docnav top'><li>Next</li></ul>"
        "<pre>a\n  b</pre><script>x()</script></body></html>"
    )
    assert texts.cleaned(texts.page(source)) == "Chapter one\n\nSome text & more.\n\na\n  b"


def test_a_message_keeps_subject_and_text_and_loses_addresses() -> None:
    source = (
        "From a@b.c Thu\nSubject: Hello\nFrom: A <a@b.c>\nContent-Type: text/plain\n\nWrite to a.b+c@d-e.org now.\n"
    )
    assert texts.cleaned(texts.mail(source)) == "Subject: Hello\n\nWrite to (address) now."


def test_a_campaign_is_read_as_who_says_what() -> None:
    source = (
        'story= _ "Long\nago."\n[message]\n  speaker=Konrad\n  # note\n'
        '  message= _ "Who goes <b>there</b>?"\n[/message]\n'
        '[message]\n  speaker=narrator\n  message=_"Nobody."\n'
    )
    assert texts.campaign(source) == "Long ago.\n\nKonrad: Who goes there?\n\nnarrator: Nobody."


def test_pairs_of_questions_and_answers_are_there_once() -> None:
    source = "categories:\n- x\nconversations:\n- - Who?\n  - Me.\n- - Why?\n  - Because.\n- - Who?\n  - Me.\n"
    assert texts.questions(source) == "Who?\nMe.\n\nWhy?\nBecause."


@pytest.mark.parametrize("data", ["naïve".encode(), "naïve".encode("latin-1")], ids=["utf-8", "latin-1"])
def test_text_is_decoded(data: bytes) -> None:
    assert texts.decoded(data) == "naïve"


def test_archives_in_archives_and_packed_files_are_read(tmp_path: Path) -> None:
    def tar(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    inner = tar({"src/b.c": b"two", "src/b.h": b"no"})
    (tmp_path / "p.tgz").write_bytes(
        gzip.compress(tar({"z/a.c.gz": gzip.compress(b"one"), "src.tar.xz": lzma.compress(inner)}))
    )
    assert list(texts.members(tmp_path / "p.tgz", r"\.c(\.gz)?$")) == [("src/b.c", b"two"), ("z/a.c.gz", b"one")]


def test_pieces_are_cut_between_paragraphs_and_lose_nothing() -> None:
    paragraphs = [words(at, 20) for at in range(30)]
    cut = texts.pieces("\n\n".join(paragraphs), 1000)
    assert "\n\n".join(cut).split("\n\n") == paragraphs
    assert len(cut) > 1 and max(map(len, cut)) <= 1000 + 2


def test_documents_that_repeat_others_are_dropped_across_kinds() -> None:
    first, second = words(1), words(2)
    near = first[: int(0.8 * len(first))] + " " + words(3, 40)
    mostly_new = first[: int(0.1 * len(first))] + " " + words(4)
    kept = texts.distinct({"a": [first, second, first.upper()], "b": [near, second + "\n", mostly_new]})
    assert kept == {"a": [first, second], "b": [mostly_new]}


def test_held_out_documents_are_not_in_the_mixture_and_kinds_kept_out_give_it_none(tmp_path: Path) -> None:
    made = {"prose": [words(at) for at in range(20)], "verse": [words(100 + at) for at in range(4)]}
    figures = texts.write(tmp_path, made, tokenizer())
    ids = {name: np.load(tmp_path / f"{name}.npy") for name in ("train_kinds", "heldout_prose", "heldout_verse")}
    documents = {
        name: {tuple(one) for one in np.split(array, np.flatnonzero(array == 0) + 1)[:-1]}
        for name, array in ids.items()
    }
    assert not documents["train_kinds"] & (documents["heldout_prose"] | documents["heldout_verse"])
    assert len(documents["train_kinds"]) == len(documents["heldout_prose"]) == 10
    assert len(documents["heldout_verse"]) == 4
    assert figures["kinds"]["prose"]["weight"] == 1.0 and figures["kinds"]["verse"]["train"]["tokens"] == 0
    assert all(array.dtype == np.uint16 and array[-1] == 0 for array in ids.values())
    assert set((tmp_path / "text_kinds" / "verse.txt").read_text().strip().split("\n\n")) == set(made["verse"])


def test_what_was_written_is_known_again_until_it_changes(tmp_path: Path) -> None:
    figures = texts.write(tmp_path, {"prose": [words(at) for at in range(8)]}, tokenizer())
    (tmp_path / "kinds.json").write_text(json.dumps({"recipe": texts.RECIPE, "tokenizer": "t", **figures}))
    assert texts.done_before(tmp_path, "t") and not texts.done_before(tmp_path, "another")
    np.save(tmp_path / "heldout_prose.npy", np.zeros(3, np.uint16))
    assert not texts.done_before(tmp_path, "t")


def test_every_kind_names_packages_that_are_pinned() -> None:
    for kind, sources in texts.KINDS.items():
        for source in sources:
            assert sum(name.startswith(source.package) for name in texts.PACKAGES) == 1, (kind, source.package)
    assert set(texts.OUT) < set(texts.KINDS)
