"""``bench/texts.py``: cleaning, deduplication, and the division into a mixture and held-out parts."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import random
import struct
import sys
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


def test_a_campaign_in_another_language_leaves_out_what_nobody_translated() -> None:
    source = 'story= _ "Long ago."\n[message]\n  speaker=Konrad\n  message= _ "Who goes <b>there</b>?"\n[/message]\n'
    translated = {"Who goes <b>there</b>?": "Qui va <b>là</b>?"}
    assert texts.campaign(source, lambda line: translated.get(line, line)) == "Konrad: Qui va là?"


def test_a_page_of_help_keeps_titles_and_steps_without_credits() -> None:
    source = (
        "<page><info><desc>Short</desc><credit><name>A</name></credit></info><title>Use <gui>Files</gui></title>"
        "<steps><item><p>First,\n  this.</p></item></steps></page>"
    )
    assert texts.cleaned(texts.help_page(source)) == "Use Files\n\nFirst, this."


def test_what_translators_left_in_english_is_dropped() -> None:
    english = "Click on the icon of the folder, and you see this list with your files."
    read = texts.not_english(texts.plain)
    dutch = "Klik op het pictogram van de map, en u ziet een lijst met al uw bestanden erin."
    assert read(f"{dutch}\n\n{english}\n\n{dutch}") == f"{dutch}\n\n{dutch}"
    assert read(f"{english}\n\n{dutch}\n\n{english}") == ""


def test_a_glossary_has_no_braces_and_no_hard_line_ends() -> None:
    source = "ADT\n\n   A kind of {data\n   abstraction}.\n"
    assert texts.glossary(source) == "ADT\n\nA kind of data abstraction."


def test_some_documents_keep_their_order_and_are_the_same_each_time() -> None:
    documents = [words(at) for at in range(20)]
    taken = texts.some(documents, sum(map(len, documents)) // 4, "seed")
    assert 5 <= len(taken) <= 6 and taken == [one for one in documents if one in taken] != documents[: len(taken)]
    assert taken == texts.some(documents, sum(map(len, documents)) // 4, "seed")
    assert texts.some(documents, sys.maxsize, "seed") == documents


def test_pairs_of_questions_and_answers_are_there_once() -> None:
    source = "categories:\n- x\nconversations:\n- - Who?\n  - Me.\n- - Why?\n  - Because.\n- - Who?\n  - Me.\n"
    assert texts.questions(source) == "Who?\nMe.\n\nWhy?\nBecause."


@pytest.mark.parametrize("data", ["naïve".encode(), "naïve".encode("latin-1")], ids=["utf-8", "latin-1"])
def test_text_is_decoded(data: bytes) -> None:
    assert texts.decoded(data) == "naïve"


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def message_catalogue(messages: dict[str, str]) -> bytes:
    """As gettext reads them: a header, tables of lengths and places, the strings."""
    pairs = [(key.encode(), value.encode()) for key, value in sorted(messages.items())]
    tables, strings = [], b""
    for column in range(2):
        for pair in pairs:
            tables.append((len(pair[column]), 28 + 16 * len(pairs) + len(strings)))
            strings += pair[column] + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    return head + b"".join(struct.pack("<2I", *entry) for entry in tables) + strings


def test_archives_in_archives_and_packed_files_are_read(tmp_path: Path) -> None:
    inner = tar({"src/b.c": b"two", "src/b.h": b"no"})
    (tmp_path / "p.tgz").write_bytes(
        gzip.compress(tar({"z/a.c.gz": gzip.compress(b"one"), "src.tar.xz": lzma.compress(inner)}))
    )
    assert list(texts.members(tmp_path / "p.tgz", r"\.c(\.gz)?$")) == [("src/b.c", b"two"), ("z/a.c.gz", b"one")]


def test_sources_of_one_package_are_read_with_their_catalogue_and_no_longer_than_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, notes = words(1), [words(2 + at).encode() for at in range(8)]
    files = {f"notes/{at}.txt": text for at, text in enumerate(notes)}
    files["a/one.cfg"] = f'message= _ "{said}"\n'.encode()
    files["locale/pt/a.mo"] = message_catalogue({"": "Content-Type: text/plain; charset=UTF-8\n", said: f"olá {said}"})
    (tmp_path / "game-1.tgz").write_bytes(gzip.compress(tar(files)))
    sources = {
        "dialogues": (texts.Source("game", r"\.cfg$", texts.campaign),),
        "languages": (texts.Source("game", r"\.cfg$", texts.campaign, words=r"/pt/.*\.mo$"),),
        "prose": (texts.Source("game", r"^notes/.*\.txt$", texts.plain, most=2 * len(notes[0])),),
    }
    monkeypatch.setattr(texts, "KINDS", sources)
    found = texts.read({"game-1.tgz": tmp_path / "game-1.tgz"})
    assert found["dialogues"] == [said] and found["languages"] == [f"olá {said}"]
    assert 2 <= len(found["prose"]) <= 3 and {text.encode() for text in found["prose"]} < set(notes)


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


def test_held_out_parts_stay_when_the_recipe_changes_and_kinds_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"prose": [words(at) for at in range(20)]}
    before = texts.write(tmp_path, made, tokenizer())["files"]
    monkeypatch.setattr(texts, "RECIPE", texts.RECIPE + 1)
    after = texts.write(tmp_path, {**made, "mail": [words(100 + at) for at in range(20)]}, tokenizer())["files"]
    assert before["heldout_prose.npy"] == after["heldout_prose.npy"]
    assert before["train_kinds.npy"] != after["train_kinds.npy"]


def test_what_was_written_is_known_again_until_it_changes(tmp_path: Path) -> None:
    figures = texts.write(tmp_path, {"prose": [words(at) for at in range(8)]}, tokenizer())
    (tmp_path / "kinds.json").write_text(json.dumps({"recipe": texts.RECIPE, "tokenizer": "t", **figures}))
    assert texts.done_before(tmp_path, "t") and not texts.done_before(tmp_path, "another")
    np.save(tmp_path / "heldout_prose.npy", np.zeros(3, np.uint16))
    assert not texts.done_before(tmp_path, "t")


def test_the_mixture_is_there_by_kind_so_that_kinds_can_be_weighed(tmp_path: Path) -> None:
    made = {kind: [words(100 * at + n) for n in range(8)] for at, kind in enumerate(("prose", "mail", "verse"))}
    figures = texts.write(tmp_path, made, tokenizer())
    whole = np.load(tmp_path / "train_kinds.npy")
    parts = {kind: np.load(tmp_path / f"train_{kind}.npy") for kind in ("prose", "mail")}
    assert {kind: len(part) for kind, part in parts.items()} == {
        kind: figures["kinds"][kind]["train"]["tokens"] for kind in parts
    }
    documents = [sorted(map(tuple, np.split(ids, np.flatnonzero(ids == 0) + 1))) for ids in (whole, *parts.values())]
    assert documents[0] == sorted([*documents[1], *documents[2]])[1:]  # there is nothing behind the last end
    assert not (tmp_path / "train_verse.npy").exists()
    assert {f"train_{kind}.npy" for kind in parts} <= figures["files"].keys()

    without = {name: digest for name, digest in figures["files"].items() if not name.startswith("train_p")}
    manifest = {"recipe": texts.RECIPE, "tokenizer": "t", **figures}
    (tmp_path / "kinds.json").write_text(json.dumps(manifest))
    assert texts.done_before(tmp_path, "t")
    (tmp_path / "kinds.json").write_text(json.dumps(manifest | {"files": without}))
    assert not texts.done_before(tmp_path, "t"), "which was written before there were such files"


def test_every_kind_names_packages_that_are_pinned() -> None:
    for kind, sources in texts.KINDS.items():
        for source in sources:
            assert sum(name.startswith(source.package) for name in texts.PACKAGES) == 1, (kind, source.package)
    assert set(texts.OUT) < set(texts.KINDS)
