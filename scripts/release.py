"""Build every distribution and check what was built: ``make release``.

python scripts/release.py dist

Fills ``dist/``, which must be empty or not there, with a source distribution of each, and a wheel made of that.  Holds
contents and metadata to what a release must have.  Installs the wheels into a new environment that has nothing of this
checkout, and there lists, checks and plans.  It publishes nothing.
"""

from __future__ import annotations

import email.parser
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Final

from scripts.version import ROOT, files, stated, written

__all__ = ["Environment", "faults_of_sdist", "faults_of_wheel", "folders", "main", "name_of"]

FIRST: Final = ("caramba_document", "caramba_terminal", "caramba_core")
"""What others need, to be uploaded before them; ``caramba``, which needs the others, comes last."""

PRESET: Final = "smollm2_135m_dba"

_LICENCE: Final = (ROOT / "LICENSE").read_bytes()


def folders() -> list[Path]:
    """The folders of all distributions."""
    projects = [ROOT / "pyproject.toml", *ROOT.glob("*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]
    return sorted(project.parent for project in projects)


def name_of(built: Path) -> str:
    """The distribution in a file."""
    return built.name.split("-")[0].replace("_", "-")


# ------------------------------------------------------------------------------------------------ what must be in it


def faults_of_wheel(wheel: Path, version: str) -> Iterator[str]:
    """What a wheel lacks, or has and should not."""
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    package, info = wheel.name.split("-")[0], f"{wheel.name.split('-')[0]}-{version}.dist-info"
    if tops := {name.split("/")[0] for name in names} - {package, info}:
        yield f"it holds {', '.join(sorted(tops))} beside {package} and {info}"
    if f"{package}/py.typed" not in names:
        yield "it has no py.typed"
    if odd := [name for name in names if "__pycache__" in name or name.startswith(f"{package}/tests/")]:
        yield f"it holds {odd[0]}"
    licence = f"{info}/licenses/LICENSE"
    if licence not in names or archive.read(licence) != _LICENCE:
        yield "it has no licence, or another one"
    if f"{info}/METADATA" not in names:
        yield "it has no metadata"
        return
    yield from _faults_of_metadata(_parsed(archive.read(f"{info}/METADATA")), version)
    points = archive.read(f"{info}/entry_points.txt").decode() if f"{info}/entry_points.txt" in names else ""
    for module in sorted(set(re.findall(rf"= ({package}[\w.]*)(?::|$)", points, re.MULTILINE))):
        path = module.replace(".", "/")
        if not {f"{path}.py", f"{path}/__init__.py"} & set(names):
            yield f"an entry point names {module}, which it does not hold"


def faults_of_sdist(sdist: Path, version: str) -> Iterator[str]:
    """What a source distribution lacks."""
    root = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
        for name in ("pyproject.toml", "README.md", "LICENSE", "PKG-INFO"):
            if f"{root}/{name}" not in names:
                yield f"it has no {name}"
        told = archive.extractfile(f"{root}/PKG-INFO")
        assert told is not None
        yield from _faults_of_metadata(_parsed(told.read()), version)


def _parsed(metadata: bytes) -> Message:
    return email.parser.Parser().parsestr(metadata.decode())


def _faults_of_metadata(metadata: Message, version: str) -> Iterator[str]:
    if metadata["Version"] != version:
        yield f"its version is {metadata['Version']}, not {version}"
    for key, wanted in (("License-Expression", "Apache-2.0"), ("Requires-Python", ">=3.11")):
        if metadata[key] != wanted:
            yield f"its {key} is {metadata[key]}, not {wanted}"
    for key in ("Summary", "License-File"):
        if not metadata[key]:
            yield f"its metadata have no {key}"
    if metadata["Description-Content-Type"] != "text/markdown" or len(str(metadata.get_payload())) < 100:
        yield "it has no README"
    ours = [text for text in metadata.get_all("Requires-Dist", []) if text.startswith("caramba")]
    yield from (f"it needs {text} in no range of versions" for text in ours if "<" not in text)


# ------------------------------------------------------------------------------------------------ that it works


class Environment:
    """A virtual environment with the third-party packages of this one, and of caramba what is installed into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv" / "bin" / "python"
        others = folder / "third_party"
        others.mkdir()
        for place in {Path(entry) for entry in sys.path if any(Path(entry).glob("*.dist-info"))}:
            for item in place.iterdir():
                ours = item.name.lower().startswith(("caramba", "_editable", "__editable", "_caramba"))
                if not ours and item.suffix != ".pth" and not (others / item.name).exists():
                    (others / item.name).symlink_to(item)
        self.add_path(others)

    def add_path(self, folder: Path) -> None:
        """Put a folder on the environment's ``sys.path``."""
        (packages,) = (self.folder / "venv" / "lib").glob("python*/site-packages")
        (packages / f"{folder.name}.pth").write_text(f"{folder}\n")

    def pip(self, *arguments: str) -> str:
        """``pip`` with what it prints, without an index."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def unmet(self) -> list[str]:
        """Requirements of caramba's distributions that the environment does not meet."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "check"]
        said = subprocess.run(command, check=False, capture_output=True, text=True).stdout
        return [line for line in said.splitlines() if line.startswith("caramba")]

    def install(self, wheels: list[Path], *distributions: str) -> None:
        """Install wheels; of these distributions, if any are named."""
        chosen = [str(wheel) for wheel in wheels if not distributions or name_of(wheel) in distributions]
        self.pip("install", "--no-compile", "--no-deps", "--no-index", *chosen)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The installed script ``caramba``, outside of the checkout."""
        return subprocess.Popen(
            [str(self.python.with_name("caramba")), *arguments],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def caramba(self, *arguments: str) -> tuple[int, str, str]:
        """The same to its end: its exit code, and what it wrote to stdout and stderr."""
        process = self.start(*arguments)
        out, err = process.communicate()
        return process.returncode, out, err


def _faults_in_use(wheels: list[Path], version: str) -> Iterator[str]:
    """What does not work where nothing but these wheels is installed."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Environment(Path(folder))
        environment.install(wheels)
        yield from environment.unmet()
        code, out, err = environment.caramba("--version")
        if code or version not in out:
            yield f"caramba --version gives {out or err!r}"
        code, out, err = environment.caramba("plugins", "list", "--json")
        listed = [] if code else json.loads(out)["plugins"]
        yield from (f"plugins list: {one['distribution']} is {one['state']}" for one in listed if one["state"] != "ok")
        if not listed:
            yield f"caramba plugins list ends with {code}: {err}"
        for words in (("plugins", "check"), ("compile", PRESET, "--print-plan"), ("presets", "list")):
            code, out, err = environment.caramba(*words)
            if code:
                yield f"caramba {' '.join(words)} ends with {code}: {out}{err}"


# ------------------------------------------------------------------------------------------------ all of it


def _build(out: Path) -> None:
    for folder in folders():
        print(f"building {folder.relative_to(ROOT)}", flush=True)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(folder)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{ran.stdout}{ran.stderr}")


def _faults(out: Path, version: str) -> Iterator[str]:
    wheels, sdists = sorted(out.glob("*.whl")), sorted(out.glob("*.tar.gz"))
    if not len(wheels) == len(sdists) == len(folders()):
        yield f"there are {len(wheels)} wheels and {len(sdists)} source distributions of {len(folders())} distributions"
    yield from (f"{wheel.name}: {fault}" for wheel in wheels for fault in faults_of_wheel(wheel, version))
    yield from (f"{sdist.name}: {fault}" for sdist in sdists for fault in faults_of_sdist(sdist, version))
    command = [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *map(str, (*wheels, *sdists))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    if ran.returncode:
        yield f"twine check: {ran.stdout}{ran.stderr}"
    yield from _faults_in_use(wheels, version)


def _before(version: str, out: Path) -> Iterator[str]:
    if stale := [file for file in files(ROOT) if written(file, version) != file.read_text(encoding="utf-8")]:
        yield f"{stale[0].relative_to(ROOT)} states another version than {version}: make version V={version}"
    if not re.search(rf"^## \[{re.escape(version)}\] - ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M):
        yield f"CHANGELOG.md has no section for {version}"
    if out.exists() and any(out.iterdir()):
        yield f"{out} is not empty"


def _in_order(built: Path) -> tuple[int, str]:
    package = built.name.split("-")[0]
    return (FIRST.index(package) if package in FIRST else len(FIRST) + (package == "caramba"), built.name)


def main(out: Path) -> int:
    """Build and check; 1 where something is wrong, which is printed."""
    version = stated(ROOT)
    faults = list(_before(version, out))
    if not faults:
        _build(out)
        print("checking", flush=True)
        faults = list(_faults(out, version))
    if faults:
        print(*faults, sep="\n")
        return 1
    built = sorted((*out.glob("*.whl"), *out.glob("*.tar.gz")), key=_in_order)
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in built]
    (out / "SHA256SUMS").write_text("\n".join(sums) + "\n", encoding="utf-8")
    print(f"caramba {version}: {len(built)} files in {out}, in the order in which to upload them:")
    print(*(f"  {file.stat().st_size:>9,}  {file.name}" for file in built), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")))
