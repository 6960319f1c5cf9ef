import errno
import re
from pathlib import Path

import pytest

from caramba_core.run.atomic import publish_folder, write_json, write_text


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")
    write_json(path, {"step": 3})
    assert path.read_text() == '{\n  "step": 3\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_without_a_json_word_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_text(path, "old")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints" / "step_000001"
    with publish_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "step_000001"
    with pytest.raises(OSError, match="disk full"), publish_folder(target) as folder:
        (folder / "a").write_text("1")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_speaks_of_what_was_to_be_published(tmp_path: Path) -> None:
    target = tmp_path / "step_000001"
    words = re.escape(f"No space left on device: '{target}'")
    with pytest.raises(OSError, match=words), publish_folder(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(OSError, match=words),
        publish_folder(target) as made,
    ):
        raise OSError(errno.ENOSPC, "No space left on device", str(made / "weights"))
    with pytest.raises(OSError, match="device: '/elsewhere'"), publish_folder(target):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere")
