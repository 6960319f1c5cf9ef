"""Names that others wrote, held to the folder that they belong to (light)."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from caramba_core.errors import InputError
from caramba_core.places import regular

__all__ = ["inside", "require_inside"]


def require_inside(name: str, origin: str) -> str:
    """The name itself; :class:`InputError` where it leads out of its folder on any system.  ``origin``: whose it is."""
    spellings = PurePosixPath(name), PureWindowsPath(name)
    if not name or "\0" in name or any(s.is_absolute() or s.drive or s.root or ".." in s.parts for s in spellings):
        raise InputError(f"{origin}: the file name {name!r} leads out of the checkpoint's folder")
    return name


def inside(folder: Path, name: str, origin: str | None = None) -> Path:
    """A file of a folder; refused where its name or a link leads out of it, or something stands there that is none.

    The hub's cache keeps files as links from ``snapshots/REVISION/`` to ``blobs/`` of the same repository; these are
    taken as inside.
    """
    path = folder / require_inside(name, origin or str(folder))
    real, home = path.resolve(), folder.resolve()
    roots = [home]
    snapshots = next((parent for parent in home.parents if parent.name == "snapshots"), None)
    if snapshots is not None and snapshots.parent.name.startswith("models--"):
        roots.append(snapshots.parent / "blobs")
    if not any(real.is_relative_to(root) for root in roots):
        raise InputError(f"{origin or folder}: {name} is a link that leads out of the checkpoint's folder")
    return regular(path)
