"""What a program imports, told by an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

from caramba_plugins_testing.case import require

__all__ = ["heavy_imports"]


def heavy_imports(program: str, *, what: str) -> str:
    """Which of torch and numpy a program imports; fails where ``what`` it does fails."""
    program += "\nimport sys\nprint(*sorted({'torch', 'numpy'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    require(ran.returncode == 0, f"{what} alone fails: {(ran.stderr.strip() or '?').splitlines()[-1]}")
    return ran.stdout.strip()
