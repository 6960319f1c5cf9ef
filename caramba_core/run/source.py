"""The commit of the sources that this program runs from."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["commit"]


def commit(file: str = __file__) -> str | None:
    """Of the git checkout that has ``file``, with ``-dirty`` where tracked files were changed.

    ``None`` where it is in none (an installed release, whose version says it) or git is missing.
    """
    place, name = Path(file).parent, Path(file).name
    try:
        tracked = subprocess.run(["git", "ls-files", "--error-unmatch", name], cwd=place, capture_output=True)
        if tracked.returncode:  # an environment may lie in a checkout of something else
            return None
        words = ["git", "describe", "--always", "--dirty", "--exclude", "*", "--abbrev=12"]
        return subprocess.run(words, cwd=place, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None
