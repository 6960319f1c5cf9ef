"""Token arrays and checkpoints carry their tokenizer's identity, which runs compare before they compute."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from caramba_plugins_standard import encoding, partial_array, tokenizing
from caramba_plugins_standard.datasets import TokenArray
from caramba_plugins_standard.loading import find_loader
from caramba_plugins_standard.texts import FileTexts

from caramba_core.cli import main
from caramba_core.run.directory import hash_of

from .workspace import make_workspace

WORDS = [*(f"w{index}" for index in range(62)), "<|endoftext|>", "?"]


def write_tokenizer(path: Path, words: list[str]) -> None:
    """Words between blanks, numbered in order: the workspace's 64 ids."""
    model = tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([word for word in words if word.startswith("<|")])
    tokenizer.save(str(path))


def caramba(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """The workspace, its teacher with a tokenizer, its arrays made by ``caramba data prepare``."""
    path = make_workspace(tmp_path)
    write_tokenizer(tmp_path / "teacher" / "tokenizer.json", WORDS)
    for name in ("train", "heldout"):
        ids = np.load(tmp_path / f"{name}.npy")
        (tmp_path / f"{name}.txt").write_text(" ".join(WORDS[int(id_) % 62] for id_ in ids))
        (tmp_path / f"{name}.npy").unlink()
        assert prepare(tmp_path, f"{name}.npy", f"{name}.txt") == 0
    return path


def prepare(folder: Path, output: str, *texts: str, source: str = "teacher") -> int:
    return caramba(
        "data", "prepare", *(folder / text for text in texts), "-o", folder / output, "--tokenizer", folder / source
    )


def run(manifest: Path, *arguments: str) -> int:
    return caramba("run", manifest, "--output", manifest.parent / "runs", *arguments)


def state(manifest: Path, run_id: str) -> tuple[Path, dict[str, object]]:
    newest = max((manifest.parent / "runs" / "small" / "half" / run_id / "checkpoints").iterdir()) / "state.json"
    found: dict[str, object] = json.loads(newest.read_text())
    return newest, found


def test_a_prepared_array_and_its_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_workspace(tmp_path)
    write_tokenizer(tmp_path / "teacher" / "tokenizer.json", WORDS)
    (tmp_path / "a.txt").write_text("w1 w2")
    (tmp_path / "b.txt").write_text("\ufeffw3 nothing")
    assert prepare(tmp_path, "new/ab.npy", "a.txt", "b.txt") == 0
    assert "5 tokens of the tokenizer" in capsys.readouterr().err
    ids = np.load(tmp_path / "new" / "ab.npy")
    assert ids.dtype == np.uint16
    assert ids.tolist() == [1, 2, 62, 3, 63]
    note = json.loads((tmp_path / "new" / "ab.npy.json").read_text())
    tokenizer = find_loader(tmp_path / "teacher").tokenizer()
    assert tokenizer is not None
    assert (note["tokenizer"], note["vocab_size"], note["tokens"]) == (tokenizer.identity, 64, 5)
    assert note["texts"] == ["a.txt", "b.txt"]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"ab.npy", "ab.npy.json"}


@pytest.mark.parametrize(
    ("output", "text", "words"),
    [
        ("train.npy", "a.txt", "exists already"),
        ("x.bin", "a.txt", "does not end in .npy"),
        ("x.npy", "latin.txt", "not UTF-8 at byte 3"),
        ("x.npy", "none.txt", "none.txt does not exist"),
        ("x.npy", "empty.txt", "there is no text"),
        ("x.npy", "a.txt", "carries no tokenizer"),
        ("x.npy", "brace.jsonl", "brace.jsonl:2: not JSON"),
        ("x.npy", "list.jsonl", "list.jsonl:1: not a JSON object"),
        ("x.npy", "other.jsonl", "other.jsonl:1: there is no 'text'; its keys: 'body'"),
        ("x.npy", "number.jsonl", "number.jsonl:1: 'text' is int, not text"),
        ("x.npy", "latin.jsonl", "latin.jsonl:1: not UTF-8 at byte 13"),
        ("x.npy", "half.jsonl", "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_prepared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, text: str, words: str
) -> None:
    make_workspace(tmp_path)
    if words != "carries no tokenizer":
        write_tokenizer(tmp_path / "teacher" / "tokenizer.json", WORDS)
    (tmp_path / "a.txt").write_text("w1 w2")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "brace.jsonl").write_text('{"text": "w1"}\n{"text": \n')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "other.jsonl").write_text('{"body": "w1"}\n')
    (tmp_path / "number.jsonl").write_text('{"text": 1}\n')
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    (tmp_path / "half.jsonl").write_text('{"text": "\\ud83d"}\n')
    before = {path.name for path in tmp_path.iterdir()}
    assert prepare(tmp_path, output, text) == 2
    assert words in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_json_lines_are_texts_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_workspace(tmp_path)
    write_tokenizer(tmp_path / "teacher" / "tokenizer.json", WORDS)
    lines = ['{"text": "w1 w2"}', "", '{"id": 3, "text": ""}', '{"text": "w3\\nw4 <|endoftext|>"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.ndjson").write_text('\ufeff{"text": "w5"}\n')
    (tmp_path / "empty.txt").write_text("")
    assert prepare(tmp_path, "ab.npy", "a.jsonl", "empty.txt", "b.ndjson") == 0
    assert "empty.txt is empty, and left out" in capsys.readouterr().err
    # the end of text that a text spells is a word like others, and not in this vocabulary
    assert np.load(tmp_path / "ab.npy").tolist() == [1, 2, 62, 3, 4, 62, 62, 5]
    for key in ("body", "text"):
        (tmp_path / "c.json").write_text(f'{{"{key}": "w1"}}\n')
    assert prepare(tmp_path, "c.npy", "c.json") == 0
    assert "c.json looks like JSON lines" in capsys.readouterr().err


def words_in_lines(path: Path, count: int = 400) -> None:
    """JSON lines of ten words each."""
    lines = [" ".join(f"w{(7 * row + word * row) % 62}" for word in range(10)) for row in range(count)]
    path.write_text("".join(f"{json.dumps({'text': line})}\n" for line in lines))


class Killed(BaseException):
    """What no handler of errors sees coming."""


def test_what_was_killed_goes_on_to_the_same_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind some batches, some of them not marked, and what it left is used: only the rest is encoded."""
    make_workspace(tmp_path)
    write_tokenizer(tmp_path / "teacher" / "tokenizer.json", WORDS)
    words_in_lines(tmp_path / "a.jsonl")
    monkeypatch.setattr(encoding, "_BATCH", 1000)
    monkeypatch.setattr(partial_array, "_BETWEEN", 0.0)
    append, appended, most = partial_array.PartialArray.append, list[int](), 1000

    def appending(self: partial_array.PartialArray, ids: np.ndarray) -> None:  # type: ignore[type-arg]
        append(self, ids)
        appended.append(len(ids))
        if len(appended) == most:
            raise Killed

    monkeypatch.setattr(partial_array.PartialArray, "append", appending)
    assert prepare(tmp_path, "whole.npy", "a.jsonl") == 0
    whole = list(appended)
    appended.clear()
    most = 5
    with pytest.raises(Killed):
        tokenizing.prepare([FileTexts(tmp_path / "a.jsonl")], tmp_path / "again.npy", str(tmp_path / "teacher"))
    assert not (tmp_path / "again.npy").exists() and not (tmp_path / "again.npy.json").exists()
    with (tmp_path / ".again.npy.partial").open("ab") as file:
        file.write(b"what was written behind the last mark")
    most = 1000
    assert prepare(tmp_path, "again.npy", "a.jsonl") == 0
    assert appended == whole and len(whole) > 10
    assert "went on behind" in capsys.readouterr().err
    assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert (tmp_path / "again.npy.json").read_text() == (tmp_path / "whole.npy.json").read_text()
    assert not list(tmp_path.glob(".again*"))


def test_a_folder_of_arrays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids of one array, in several with a note each; it appears at once, also where a call before was killed."""
    make_workspace(tmp_path)
    write_tokenizer(tmp_path / "teacher" / "tokenizer.json", WORDS)
    words_in_lines(tmp_path / "a.jsonl")
    monkeypatch.setattr(encoding, "_BATCH", 1000)
    monkeypatch.setattr(partial_array, "_BETWEEN", 0.0)
    monkeypatch.setattr(partial_array, "_SHARD", 1000)
    assert prepare(tmp_path, "whole.npy", "a.jsonl") == 0
    whole = np.load(tmp_path / "whole.npy")
    append, left = partial_array.PartialArray.append, 7

    def appending(self: partial_array.PartialArray, ids: np.ndarray) -> None:  # type: ignore[type-arg]
        nonlocal left
        left -= 1
        if not left:
            raise Killed
        append(self, ids)

    with monkeypatch.context() as patch:
        patch.setattr(partial_array.PartialArray, "append", appending)
        with pytest.raises(Killed):
            tokenizing.prepare([FileTexts(tmp_path / "a.jsonl")], tmp_path / "ids", str(tmp_path / "teacher"))
    assert not (tmp_path / "ids").exists()
    assert len(list((tmp_path / ".ids.partial").glob("*.npy"))) == 1  # whole, and another one was begun
    capsys.readouterr()
    assert prepare(tmp_path, "ids", "a.jsonl") == 0
    told = capsys.readouterr().err
    assert "went on behind" in told and f"ids: {len(whole):,} tokens of" in told
    arrays = sorted((tmp_path / "ids").glob("*.npy"))
    assert {path.name for path in (tmp_path / "ids").iterdir()} == {
        name for path in arrays for name in (path.name, f"{path.name}.json")
    }
    assert len(arrays) > 2
    assert np.concatenate([np.load(path) for path in arrays]).tolist() == whole.tolist()
    opened = TokenArray(path="ids", documents=True).open(tmp_path, None)
    assert opened.read(0, len(whole)).tolist() == whole.tolist()
    notes = [json.loads(path.with_name(f"{path.name}.json").read_text()) for path in arrays]
    assert [note["tokens"] for note in notes] == [len(np.load(path)) for path in arrays]
    whole_note = json.loads((tmp_path / "whole.npy.json").read_text())
    assert whole_note["documents"] == 400 == 1 + sum(note["documents"] - 1 for note in notes)
    (tmp_path / "b.jsonl").write_text('{"text": "w1 w2"}')
    for name in ("a.jsonl", "b.jsonl"):  # what another text left is not used
        with monkeypatch.context() as patch:
            left = 7 if name == "a.jsonl" else 1000
            patch.setattr(partial_array.PartialArray, "append", appending)
            with contextlib.suppress(Killed):
                tokenizing.prepare([FileTexts(tmp_path / name)], tmp_path / "other", str(tmp_path / "teacher"))
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["00000.npy", "00000.npy.json"]


def test_what_was_killed_is_begun_anew_where_the_texts_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_workspace(tmp_path)
    write_tokenizer(tmp_path / "teacher" / "tokenizer.json", WORDS)
    (tmp_path / "a.txt").write_text("w1 w2")
    array = partial_array.PartialArray(tmp_path / "a.npy", "another key", {}, "uint16")
    array.append(np.array([9, 9, 9], np.uint16))
    array.mark()
    assert prepare(tmp_path, "a.npy", "a.txt") == 2  # somebody makes it
    assert "another process is making" in capsys.readouterr().err
    array.close()
    assert prepare(tmp_path, "a.npy", "a.txt") == 0
    assert np.load(tmp_path / "a.npy").tolist() == [1, 2]
    assert "went on" not in capsys.readouterr().err


def test_so_many_tokens_and_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_workspace(tmp_path)
    write_tokenizer(tmp_path / "teacher" / "tokenizer.json", WORDS)
    words_in_lines(tmp_path / "a.jsonl")
    made = ("data", "prepare", tmp_path / "a.jsonl", "--tokenizer", tmp_path / "teacher")
    assert caramba(*made, "-o", tmp_path / "all.npy") == 0
    assert caramba(*made, "-o", tmp_path / "some.npy", "--tokens", "1.5k") == 0
    assert np.load(tmp_path / "some.npy").tolist() == np.load(tmp_path / "all.npy").tolist()[:1500]
    assert json.loads((tmp_path / "some.npy.json").read_text())["tokens"] == 1500
    assert caramba(*made, "-o", tmp_path / "none.npy", "--tokens", "many") == 2
    assert "such as 500k, 100M or 1.5B" in capsys.readouterr().err


def test_parquet_holds_a_text_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    make_workspace(tmp_path)
    write_tokenizer(tmp_path / "teacher" / "tokenizer.json", WORDS)
    parquet.write_table(
        pyarrow.table({"id": [1, 2], "text": ["w1 w2", "w3"], "gone": ["w1", None]}), tmp_path / "a.parquet"
    )
    made = ("data", "prepare", tmp_path / "a.parquet", "--tokenizer", tmp_path / "teacher", "-o", tmp_path / "a.npy")
    for column, words in (
        ("id", "row 1: 'id' is int, not text"),
        ("gone", "row 2: 'gone' is NoneType, not text"),
        ("body", "there is no 'body'; its columns: 'id', 'text', 'gone'"),
    ):
        assert caramba(*made, "--column", column) == 2
        assert words in capsys.readouterr().err
    assert caramba(*made) == 0
    assert np.load(tmp_path / "a.npy").tolist() == [1, 2, 62, 3]
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-7])
    assert prepare(tmp_path, "b.npy", "b.parquet") == 2
    assert "cannot be read as parquet" in capsys.readouterr().err


def test_checkpoints_carry_the_identity(manifest: Path) -> None:
    assert run(manifest) == 0
    note = json.loads((manifest.parent / "train.npy.json").read_text())
    for run_id in ("convert", "finetune"):
        assert state(manifest, run_id)[1]["tokenizer"] == note["tokenizer"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [("prompt: ''", "the prompt holds no token"), ("prompt: a, add_bos: true", "the tokenizer has none")],
)
def test_a_dry_run_says_what_is_wrong_with_a_prompt(
    manifest: Path, capsys: pytest.CaptureFixture[str], keys: str, words: str
) -> None:
    manifest.write_text(f"{manifest.read_text()}      - {{id: say, mode: generate, {keys}}}\n")
    assert run(manifest, "--dry-run") == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("which", ["train", "heldout"])
def test_arrays_of_another_tokenizer_are_refused(
    manifest: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    write_tokenizer(manifest.parent / "teacher" / "tokenizer.json", WORDS[::-1])
    (manifest.parent / f"{which}.npy").unlink()
    (manifest.parent / f"{which}.npy.json").unlink()
    assert prepare(manifest.parent, f"{which}.npy", f"{which}.txt") == 0
    write_tokenizer(manifest.parent / "teacher" / "tokenizer.json", WORDS)
    assert run(manifest) == 2
    said = capsys.readouterr().err
    assert f"{which}.npy was made with another tokenizer" in said
    assert "expected: the teacher's tokenizer (identity" in said
    assert not (manifest.parent / "runs").exists()


def test_arrays_that_differ_from_each_other_are_refused_without_a_teachers_tokenizer(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (manifest.parent / "teacher" / "tokenizer.json").unlink()
    note = manifest.parent / "heldout.npy.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "tokenizer": "f" * 64}))
    assert run(manifest) == 2
    said = capsys.readouterr().err
    assert "another tokenizer" in said
    assert "train.npy" in said
    assert not (manifest.parent / "runs").exists()


@pytest.mark.parametrize("teacher_has_one", [True, False])
def test_checkpoints_of_another_tokenizer_are_refused(
    manifest: Path, capsys: pytest.CaptureFixture[str], teacher_has_one: bool
) -> None:
    if not teacher_has_one:
        (manifest.parent / "teacher" / "tokenizer.json").unlink()
    assert run(manifest, "--run", "convert") == 0
    path, found = state(manifest, "convert")
    found["tokenizer"] = "0" * 64
    del found["sha256"]
    path.write_text(json.dumps({**found, "sha256": hash_of(found)}))
    assert run(manifest) == 2
    said = capsys.readouterr().err
    assert "step_000000 was made with another tokenizer (identity 000000000000)" in said
    assert f"expected: the {'teacher' if teacher_has_one else 'data'}'s tokenizer" in said
    assert not (manifest.parent / "runs" / "small" / "half" / "finetune").exists()
