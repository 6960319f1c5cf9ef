"""How many lines of Python each distribution has, without tests, bench and docs; templates of scaffolds beside them.

python bench/lines.py                 # of this checkout
python bench/lines.py ../before       # beside those of other ones
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

__all__ = ["ROOT", "lines"]

ROOT = Path(__file__).resolve().parents[1]


def lines(root: Path, ending: str = "py") -> dict[str, int]:
    """Lines of the files with an ending, by distribution."""
    found = {}
    for project in sorted({root, *root.glob("*/"), *root.glob("plugins/*/")}):
        if (file := project / "pyproject.toml").exists():
            data = tomllib.loads(file.read_text(encoding="utf-8"))
            packages = data["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
            sources = [path for package in packages for path in (project / package).rglob(f"*.{ending}")]
            found[data["project"]["name"]] = sum(path.read_text(encoding="utf-8").count("\n") for path in sources)
    return found


def main(*others: str) -> None:
    """Print one row a distribution, one column a checkout."""
    roots = [*map(Path, others), ROOT]
    columns = [lines(root) for root in roots]
    for name in dict.fromkeys(name for column in reversed(columns) for name in column):
        print(f"{name:32}", *(f"{column.get(name, 0):8,}" for column in columns))
    print(f"{'sum':32}", *(f"{sum(column.values()):8,}" for column in columns))
    print(f"{'templates':32}", *(f"{sum(lines(root, 'template').values()):8,}" for root in roots))


if __name__ == "__main__":
    main(*sys.argv[1:])
