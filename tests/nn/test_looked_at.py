"""A file found sound is not read again while it is the same, and read again as soon as it is not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caramba_core.loading import Span, Stored
from caramba_core.nn import finite, looked_at
from caramba_core.nn.finite import NotNumbers, not_numbers_in_files
from caramba_core.nn.looked_at import Look

NAN = float("nan")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache in a world where every file is worth remembering."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(looked_at, "_WORTH_REMEMBERING", 1)
    return tmp_path / "cache" / "caramba" / "looked-at"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is written in the test was written a minute ago."""
    set_clock(monkeypatch, time.time() + 60)


def set_clock(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr(looked_at, "time", lambda: now)


def write(path: Path, content: bytes, *, times: os.stat_result | None = None) -> None:
    """Write over a file in place; in no tick of the clock that saw it change before."""
    before = path.stat().st_ctime_ns if path.exists() else 0
    while not path.exists() or path.stat().st_ctime_ns == before:
        path.write_bytes(content)
        if times is not None:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def known(path: Path, what: str = "all") -> bool:
    return Look.at(path, what).known_sound()


def remember(path: Path, what: str = "all") -> None:
    Look.at(path, what).remember_sound()
    assert known(path, what)


@pytest.mark.usefixtures("cache", "settled")
class TestSameFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "weights"
        write(file, b"12345678")
        assert not known(file)
        remember(file)
        return file

    def test_is_known_by_what_was_looked_at(self, file: Path) -> None:
        assert not known(file, "a part of it")
        remember(file, "a part of it")
        assert known(file)

    def test_under_another_name(self, file: Path, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(file)
        assert known(link)

    def test_written_to_with_its_times_set_back(self, file: Path) -> None:
        before = file.stat()
        write(file, b"87654321", times=before)
        after = file.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert not known(file)

    def test_replaced_by_one_of_its_size_and_times(self, file: Path, tmp_path: Path) -> None:
        times = file.stat()
        other = tmp_path / "other"
        write(other, b"87654321", times=times)
        other.replace(file)
        assert file.stat().st_mtime_ns == times.st_mtime_ns
        assert not known(file)

    def test_longer_or_gone(self, file: Path) -> None:
        with file.open("ab") as opened:
            opened.write(b"9")
        assert not known(file)
        file.unlink()
        assert not known(file)

    def test_changed_while_it_was_looked_at(self, file: Path) -> None:
        look = Look.at(file, "another look")
        write(file, b"87654321")
        look.remember_sound()
        assert not known(file, "another look")


@pytest.mark.usefixtures("cache")
def test_a_file_that_changed_just_now_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "weights", b"12345678")
    os.utime(tmp_path / "weights", (0, 0))
    changed = (tmp_path / "weights").stat().st_ctime
    for later, trusted in ((-100, False), (1.9, False), (2.1, True)):
        set_clock(monkeypatch, changed + later)
        assert not known(tmp_path / "weights")
        Look.at(tmp_path / "weights", "all").remember_sound()
        assert known(tmp_path / "weights") is trusted, later


@pytest.mark.usefixtures("settled")
def test_a_small_file_leaves_no_mark(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked_at, "_WORTH_REMEMBERING", 9)
    write(tmp_path / "weights", b"12345678")
    Look.at(tmp_path / "weights", "all").remember_sound()
    assert not known(tmp_path / "weights")
    assert not cache.exists()


@pytest.mark.usefixtures("settled")
def test_marks_go_after_a_season(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "weights", b"12345678")
    remember(tmp_path / "weights")
    set_clock(monkeypatch, time.time() + 89 * 86400)
    remember(tmp_path / "weights", "later")
    assert known(tmp_path / "weights")
    for mark in cache.iterdir():
        assert mark.stat().st_size == 0
    set_clock(monkeypatch, time.time() + 91 * 86400)
    Look.at(tmp_path / "weights", "last").remember_sound()
    assert not known(tmp_path / "weights")


@pytest.mark.usefixtures("settled")
def test_without_a_place_for_marks_files_are_looked_at_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "weights", b"12345678")
    cache.parent.parent.write_bytes(b"a file where the folder should be")
    Look.at(tmp_path / "weights", "all").remember_sound()
    assert not known(tmp_path / "weights")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    Look.at(tmp_path / "weights", "all").remember_sound()
    assert not known(tmp_path / "weights")


# ------------------------------------------------------------------------------------------------- as it is used


def stored(path: Path, key: str, offset: int, count: int) -> Stored:
    span = Span(path=path, offset=offset, dtype="float32")
    return Stored(key=key, name=None, shape=(count,), dtype="F32", span=span)


def values(path: Path, *numbers: float, times: os.stat_result | None = None) -> None:
    write(path, torch.tensor(numbers, dtype=torch.float32).numpy().tobytes(), times=times)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many values of files were looked at, piece by piece."""
    seen: list[int] = []
    counted = finite._counted

    def watched(values: torch.Tensor) -> NotNumbers:
        seen.append(values.numel())
        return counted(values)

    monkeypatch.setattr(finite, "_counted", watched)
    return seen


@pytest.mark.usefixtures("cache", "settled")
def test_sound_files_are_read_once(tmp_path: Path, read: list[int]) -> None:
    sound, broken = tmp_path / "sound", tmp_path / "broken"
    values(sound, 1, 2, 3)
    values(broken, 1, 2, 3, NAN)
    entries = [stored(sound, "a", 0, 1), stored(broken, "b", 0, 2), stored(broken, "c", 8, 2), stored(sound, "d", 4, 2)]
    expected = {"a": NotNumbers(), "b": NotNumbers(), "c": NotNumbers(nan=1), "d": NotNumbers()}
    assert not_numbers_in_files(entries) == expected
    assert sorted(read) == [1, 2, 2, 2]
    read.clear()
    assert not_numbers_in_files(entries) == expected
    assert read == [2, 2]  # of the broken file
    read.clear()
    assert not_numbers_in_files(entries[3:]) == {"d": NotNumbers()}
    assert read == [2]  # another part is another look


@pytest.mark.usefixtures("cache", "settled")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "write, times kept", "replace, times kept", "look"]), st.booleans()),
        max_size=12,
    )
)
def test_whatever_happens_to_a_file_its_faults_are_found(tmp_path: Path, steps: list[tuple[str, bool]]) -> None:
    file, other = tmp_path / "weights", tmp_path / "other"
    values(file, 1, 2)
    fault = False
    for step, faulty in steps:
        times = file.stat()
        if step != "look":
            fault = faulty
            numbers = (1.0, NAN if fault else 2.0)
            values(file if step.startswith("write") else other, *numbers, times=times if "kept" in step else None)
            if step.startswith("replace"):
                other.replace(file)
        assert not_numbers_in_files([stored(file, "a", 0, 2)]) == {"a": NotNumbers(nan=int(fault))}


@pytest.mark.usefixtures("cache", "settled")
def test_a_fault_written_behind_the_look_is_found_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, counted = tmp_path / "weights", finite._counted
    values(file, 1, 2)

    def slow(found: torch.Tensor) -> NotNumbers:
        counts = counted(found)
        values(file, NAN, 2)
        return counts

    with monkeypatch.context() as patch:
        patch.setattr(finite, "_counted", slow)
        assert not_numbers_in_files([stored(file, "a", 0, 2)]) == {"a": NotNumbers()}
    assert not_numbers_in_files([stored(file, "a", 0, 2)]) == {"a": NotNumbers(nan=1)}
