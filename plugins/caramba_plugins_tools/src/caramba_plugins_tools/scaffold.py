"""``plugins new``: a small complete distribution whose tests pass as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Final

import attrs
from caramba_document.suggestions import nearest

from caramba_core import __version__
from caramba_core.errors import InputError, PluginError
from caramba_core.kinds import LAYER_KINDS
from caramba_core.plugins import API_VERSION
from caramba_core.plugins.metadata import CORE
from caramba_core.plugins.registry import registry

__all__ = ["SCAFFOLDS", "write_distribution"]

_TEMPLATES: Final = Path(__file__).with_name("templates")
_SUFFIX: Final = ".template"


@attrs.frozen
class _Scaffold:
    """A kind of plugin that can be started: one line about it, how a manifest uses it, its entry point if any.

    ``needs`` are the distributions that it imports.
    """

    summary: str
    usage: str = (
        "`example.yml` is a small model with it, which needs caramba-plugins-standard for the rest; `caramba compile "
        "example.yml --print-plan` plans it. In the list of layers of any manifest: `- {{type: {name}{example}}}`."
    )
    entry: str = '[project.entry-points."caramba.{kind}"]\n{name} = "{package}.config:{title}"\n'
    example: str = ""
    needs: tuple[str, ...] = (CORE,)


SCAFFOLDS: Final[Mapping[str, _Scaffold]] = {
    "attention": _Scaffold("The attention {name} for caramba.", example=", n_heads: 4"),
    "layer": _Scaffold("The layer {name} for caramba.", example=", d_ff: 512"),
    "topology": _Scaffold("The topology {name} for caramba.", example=", layers: [{{type: rms_norm}}]"),
    "strategy": _Scaffold(
        "The training strategy {name} for caramba.",
        "In a run of a manifest: `train: {{strategy: {name}, ...}}`.",
        needs=(CORE, "caramba-plugins-standard"),
    ),
    "loader": _Scaffold(
        "A reader of {name} checkpoints for caramba.",
        "A teacher whose `source` is such a folder is read by this plugin.",
        entry='[project.entry-points."caramba.loader"]\n{name} = "{package}.loader:{title}"\n',
        needs=(CORE, "caramba-plugins-standard"),
    ),
    "tracker": _Scaffold(
        "Writes the numbers of each caramba run to {name}.csv.",
        "Once installed, every run has the file in its folder; `--no-plugin {distribution}` leaves it out.",
        entry='[project.entry-points.caramba]\n{name} = "{package}.plugin"\n',
    ),
}


def write_distribution(name: str, kind: str, folder: Path | None = None) -> Path:
    """Write the distribution for a component called ``name`` and return its folder.

    Raises :class:`InputError` for a name or kind that cannot be, a name that is taken, and a folder that is not empty.
    """
    if kind not in SCAFFOLDS:
        near = nearest(kind, SCAFFOLDS)
        raise InputError(
            f"--kind: nothing can be started for {kind!r}",
            expected=", ".join(SCAFFOLDS),
            hint=f"did you mean {near[0]!r}?" if near else None,
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise InputError(
            f"{name!r} cannot be the name of a component and of a Python package",
            expected="small letters, digits and single underscores, starting with a letter: my_attention",
        )
    _require_free(name, kind)
    words = _words(name, kind)
    folder = folder or Path(words["distribution"])
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already, and is not an empty folder", hint="choose another with --output")
    for source, place in _files(kind, words):
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(source.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
    return folder


def _require_free(name: str, kind: str) -> None:
    if kind == "tracker":
        return
    try:
        taken = registry().find(LAYER_KINDS if kind in LAYER_KINDS else (kind,), name)
    except PluginError:
        return
    raise InputError(
        f"the {taken.kind} {name!r} exists already, in {taken.distribution} {taken.version}", hint="choose another name"
    )


def _words(name: str, kind: str) -> dict[str, str]:
    """What the templates' placeholders stand for."""
    scaffold = SCAFFOLDS[kind]
    words = {
        "name": name,
        "kind": kind,
        "title": "".join(part.capitalize() for part in name.split("_")),
        "distribution": f"caramba-plugin-{name.replace('_', '-')}",
        "package": f"caramba_plugin_{name}",
        "api": API_VERSION,
        "dependencies": ", ".join(f'"{needed}{_minor_range()}"' for needed in scaffold.needs),
    }
    for part in ("example", "summary", "usage", "entry"):
        words[part] = getattr(scaffold, part).format(**words)
    return words


def _minor_range() -> str:
    """This minor version, which all distributions share: the plugin API may grow in the next."""
    major, minor = __version__.split(".")[:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


def _files(kind: str, words: Mapping[str, str]) -> Iterator[tuple[Path, Path]]:
    """The templates of a kind and where each goes; a kind's own file takes the place of the common one."""
    chosen: dict[Path, Path] = {}
    for layer in ("common", kind):
        root = _TEMPLATES / layer
        for source in sorted(root.rglob(f"*{_SUFFIX}")):
            chosen[source.relative_to(root)] = source
    for place, source in chosen.items():
        text = str(place).removesuffix(_SUFFIX).replace("PACKAGE", words["package"]).replace("NAME", words["name"])
        yield source, Path(text)
