"""The version of the distributions, which are released together: one number, ``caramba_core.__version__``.

Each pyproject repeats it, because a source distribution is built from its own folder alone and can read no file
beside it; so do the ranges in which the distributions, and the tutorial's, require each other.

python scripts/version.py           # says what the version is, and which files state another one
python scripts/version.py 0.2.0     # writes it everywhere; then: make install
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

__all__ = ["files", "main", "stated", "written"]

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = "caramba_core/__init__.py"

_VERSION: Final = re.compile(r'^((?:__)?version(?:__)? = )"\d+\.\d+\.\d+"$', re.MULTILINE)
_RANGE: Final = re.compile(r"(\bcaramba-(?!plugin-)[a-z-]+(?:\[[a-z,-]+\])?)>=\d+(?:\.\d+)*,<\d+(?:\.\d+)*")
_LISTED: Final = re.compile(r"\bcore <\d+(?:\.\d+)*,>=\d+(?:\.\d+)*")


def files(root: Path) -> list[Path]:
    """Every file that states the version or a range of it."""
    projects = [root / "pyproject.toml", *root.glob("*/pyproject.toml"), *root.glob("plugins/*/pyproject.toml")]
    pages = [root / "docs" / "plugins.md", *root.glob("docs/recipes/*.md")]
    return [root / SOURCE, *sorted(projects), *sorted(pages)]


def stated(root: Path) -> str:
    """The version that the core states."""
    found = re.search(r'^__version__ = "(.+)"$', (root / SOURCE).read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def written(file: Path, version: str) -> str:
    """A file's text with ``version``, and with ranges that end where a version may break what plugins rely on."""
    major, minor, _ = map(int, version.split("."))
    following = f"0.{minor + 1}" if major == 0 else str(major + 1)
    text = _RANGE.sub(rf"\g<1>>={major}.{minor},<{following}", file.read_text(encoding="utf-8"))
    text = _LISTED.sub(f"core <{following},>={major}.{minor}", text)
    return text if file.suffix == ".md" else _VERSION.sub(rf'\g<1>"{version}"', text)  # a page has plugins of its own


def main(root: Path, version: str | None) -> int:
    """Write the version, or say which files state another one."""
    wanted = version or stated(root)
    stale = [file for file in files(root) if written(file, wanted) != file.read_text(encoding="utf-8")]
    print(wanted, *(file.relative_to(root) for file in stale), sep="\n  ")
    if version is None:
        return 1 if stale else 0
    for file in stale:
        file.write_text(written(file, version), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(ROOT, sys.argv[1] if len(sys.argv) > 1 else None))
