"""Exports onto a disk that is really full, and past a real limit on the size of files: exit code 5, nothing left."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from .measuring import caramba, measure, only_report
from .runs import decoder, make_run

_ROOM = 1 << 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights take twice the room."""
    model = decoder({"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "rope": {"theta": 500.0}}, tied=True)
    model["embedder"]["vocab_size"] = 2 * _ROOM // (24 * 4)
    path = tmp_path_factory.mktemp("run") / "r"
    make_run(path, model)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("there is no mount here")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={_ROOM}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run([umount, str(folder)], check=True)


@pytest.mark.parametrize("left", [0, 8192, 200_000, _ROOM])
def test_a_full_disk(run: Path, disk: Path, left: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Full from the beginning, after the configuration, amid the weights."""
    (disk / "filler").write_bytes(bytes(_ROOM - left))
    assert caramba("export", str(run), "-o", str(disk / "out")) == 5
    told = only_report(capsys)
    assert told == (
        f"error: no space left on the device while writing {disk / 'out'}\n  hint: free some, or write elsewhere\n"
    )
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_disk_with_room(run: Path, tmp_path: Path) -> None:
    assert caramba("export", str(run), "-o", str(tmp_path / "out")) == 0


def test_runs_on_a_full_disk(folder: Path, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (disk / "filler").write_bytes(bytes(_ROOM))
    assert measure(tmp_path, "{source: model}", "disk/runs") == 5
    told = capsys.readouterr().err
    assert told.count("error: ") == 1
    assert f"error: no space left on the device while writing {disk}" in told


no_dill = pytest.mark.skipif(
    find_spec("dill") is not None, reason="where dill is installed, torch is imported only if something can be written"
)


@pytest.mark.parametrize("blocks", [pytest.param(0, marks=no_dill), 1, 100])
def test_a_limit_on_the_size_of_files(run: Path, tmp_path: Path, blocks: int) -> None:
    """``ulimit -f``, in blocks of 512 or 1024 bytes."""
    command = [sys.executable, "-m", "caramba_core", "export", str(run), "-o", str(tmp_path / "out")]
    ended = subprocess.run(
        ["/bin/sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh", *command], capture_output=True, text=True
    )
    assert ended.returncode == 5, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr == (
        f"error: a file would be larger than is allowed while writing {tmp_path / 'out'}\n"
        "  hint: raise the limit (ulimit -f), or write to another file system\n"
    )
    assert list(tmp_path.iterdir()) == []
