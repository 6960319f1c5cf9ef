"""Token ids in many files: read as one array, and refused with the name of the file that is at fault."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from caramba_plugins_standard.datasets import TokenArray
from hypothesis import given, settings
from hypothesis import strategies as st

from caramba_core.errors import InputError, InvalidValue
from caramba_core.run.overlap import share_found


def shards(folder: Path, *sizes: int, types: str = "uint16") -> np.ndarray[Any, Any]:
    """Writes files ``0.npy``, ``1.npy``, ... of these sizes; all of their ids."""
    ids = np.random.default_rng(0).integers(0, 200, sum(sizes))
    for number, part in enumerate(np.split(ids, np.cumsum(sizes)[:-1])):
        np.save(folder / f"{number}.npy", part.astype(types))
    return ids


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    place=st.tuples(st.integers(0, 50), st.integers(0, 50)),
)
def test_files_are_read_as_one_array(
    tmp_path_factory: Any, sizes: list[int], part: tuple[float, float], place: tuple[int, int]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    ids = shards(folder, *sizes)
    low, high = sorted(part)
    wanted = ids[int(low * len(ids)) : int(high * len(ids))]
    if not len(wanted):
        return
    whole = folder / "whole"
    whole.mkdir()
    np.save(whole / "a.npy", ids.astype("uint16"))
    one = TokenArray(path="whole/a.npy", part=(low, high)).open(folder, None)
    many = TokenArray(path="*.npy", part=(low, high)).open(folder, None)
    first, last = sorted(place)
    assert many.read(0, len(wanted) + 9).tolist() == wanted.tolist()
    assert many.read(first, last).tolist() == wanted[first:last].tolist()
    assert len(many.ids) == len(wanted)
    assert many.hash == one.hash, "the hash is of the ids, however they are divided into files"


def test_a_list_a_pattern_and_a_folder(tmp_path: Path) -> None:
    ids = shards(tmp_path, 5, 7, 3).tolist()
    (tmp_path / "notes.txt").write_text("no array")
    for path in ("*.npy", str(tmp_path / "[0-2].npy"), ".", ("0.npy", "[12].npy")):
        assert TokenArray(path=path).open(tmp_path, None).read(0, 15).tolist() == ids
    assert TokenArray(path=("2.npy", "0.npy")).open(tmp_path, None).read(0, 8).tolist() == ids[12:] + ids[:5]
    (tmp_path / "a[0].npy").symlink_to("1.npy")
    assert TokenArray(path="a[0].npy").open(tmp_path, None).read(0, 7).tolist() == ids[5:12], "a name before a pattern"
    with pytest.raises(InvalidValue, match="the list is empty"):
        TokenArray(path=())
    with pytest.raises(InputError, match=r"9\*\.npy does not exist"):
        TokenArray(path="9*.npy").open(tmp_path, None)


def test_files_of_different_types(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1, 2], np.uint16))
    np.save(tmp_path / "b.npy", np.array([70_000, 3], np.uint32))
    assert TokenArray(path="*.npy").open(tmp_path, None).read(0, 4).tolist() == [1, 2, 70_000, 3]


@pytest.mark.parametrize("change", ["shrink", "grow", "remove"])
def test_a_file_that_changes_is_named(tmp_path: Path, change: str) -> None:
    """The others can still be read."""
    ids = shards(tmp_path, 5000, 5000, 5000)
    tokens = TokenArray(path=".").open(tmp_path, None)
    path = tmp_path / "1.npy"
    if change == "remove":
        path.unlink()
    else:
        os.truncate(path, 4096 if change == "shrink" else 1 << 16)
    assert tokens.read(10, 5000).tolist() == ids[10:5000].tolist()
    assert tokens.read(10_000, 10_005).tolist() == ids[10_000:10_005].tolist()
    for first, last in ((4999, 5001), (5000, 5001), (9999, 10_001), (0, 15_000)):
        with pytest.raises(InputError, match=r"1\.npy has changed while its tokens were read"):
            tokens.read(first, last)


def test_an_id_that_is_none_is_named_by_its_file(tmp_path: Path) -> None:
    shards(tmp_path, 5, 7)
    np.save(tmp_path / "2.npy", np.array([0, 3, -1]))
    with pytest.raises(InputError, match=r"2\.npy holds the negative token id -1 at 2$|2\.npy .* -1 at 2,?\s"):
        TokenArray(path=".").open(tmp_path, None)
    np.save(tmp_path / "2.npy", np.array([0, 3, 999]))
    with pytest.raises(InputError, match=r"2\.npy holds token id 999 at 2, beyond"):
        TokenArray(path=".", part=(0.5, 1.0)).open(tmp_path, None).checked(500)
    np.save(tmp_path / "1.npy", np.arange(3.0))
    with pytest.raises(InputError, match=r"1\.npy holds float64"):
        TokenArray(path=".").open(tmp_path, None)


def test_notes_of_many_files(tmp_path: Path) -> None:
    shards(tmp_path, 5, 7)
    note = {"tokenizer": "one", "vocab_size": 200, "tokens": 7}
    (tmp_path / "1.npy.json").write_text(json.dumps(note))
    assert TokenArray(path=".").open(tmp_path, None).tokenizer == "one"
    for change, words in (
        ({"tokenizer": "two"}, r"1\.npy and .*0\.npy were made with different tokenizers \(tokenizer one and two\)"),
        ({"vocab_size": 300}, r"vocab_size 200 and 300"),
        ({"tokens": 6}, r"0\.npy holds 5 tokens"),
        ({"sha256": "0" * 64}, r"0\.npy has SHA-256"),
    ):
        (tmp_path / "0.npy.json").write_text(json.dumps({**note, "tokens": 5, **change}))
        with pytest.raises(InputError, match=words):
            TokenArray(path=".").open(tmp_path, None)


def test_held_out_files_among_the_training_files(tmp_path: Path) -> None:
    shards(tmp_path, 300, 100, 100)

    def share(train: str, heldout: str | tuple[str, ...], part: tuple[float, float] = (0.0, 1.0)) -> float:
        return share_found(
            TokenArray(path=train).open(tmp_path, None), TokenArray(path=heldout, part=part).open(tmp_path, None)
        )

    assert share(".", "2.npy") == 1.0
    assert share("[01].npy", ("1.npy", "2.npy")) == 0.5
    assert share("[01].npy", ("0.npy", "2.npy"), (0.5, 1.0)) == 0.5
    assert share("[01].npy", "2.npy") == 0.0
