"""Where an exported model comes from, as its card tells: the teacher, its licence, the data of the run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Final

import attrs
from caramba_plugins_standard.loading import Checkpoint, fetch_source
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from caramba_core.errors import CarambaError
from caramba_core.places import expanded
from caramba_plugins_llama.gguf_file import GgufFile

__all__ = ["Licence", "Teacher", "data_lines", "licence_of"]

_HUB: Final = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/\s]+))?(?:/(?P<file>\S+))?")
_FRONT: Final = re.compile(r"---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)
_LONGEST: Final = 1 << 16
"""Characters of a card that are read: its metadata stands on top."""


@attrs.frozen(kw_only=True)
class Licence:
    """A licence in the words of a card's metadata: ``license``, and ``license_name`` and ``license_link`` of others."""

    metadata: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def known(self) -> bool:
        """Whether the teacher's card or metadata states one."""
        return bool(self.metadata.get("license"))

    def __str__(self) -> str:
        name = self.metadata.get("license_name") or self.metadata.get("license", "unknown")
        link = self.metadata.get("license_link")
        return name if link is None else f"{name} ({link})"


@attrs.frozen(kw_only=True)
class Teacher:
    """What a model started from: ``source`` as a manifest or a command names it."""

    source: str
    licence: Licence

    @property
    def repository(self) -> str | None:
        """Its name on the Hugging Face hub, where it came from there."""
        found = _HUB.fullmatch(self.source)
        return None if found is None else found["repository"]

    def __str__(self) -> str:
        found = _HUB.fullmatch(self.source)
        if found is None:  # where it lies on this machine is nobody else's business
            return f"`{expanded(self.source).resolve().name or self.source}`"
        file = f", file `{found['file']}`" if found["file"] else ""
        revision = f" at `{found['revision']}`" if found["revision"] else ""
        return f"`{found['repository']}`{revision}{file}"


def licence_of(source: str, checkpoint: Checkpoint) -> Licence:
    """The licence that a checkpoint's GGUF metadata or card states; unknown where neither does."""
    if isinstance(checkpoint, GgufFile):
        keys = {"license": "general.license", "license_name": "general.license.name"}
        keys["license_link"] = "general.license.link"
        found = _stated({key: checkpoint.header.metadata.get(name) for key, name in keys.items()})
        if found.known:
            return found
    hub = _HUB.fullmatch(source)
    if hub is not None:
        revision = f"@{hub['revision']}" if hub["revision"] else ""
        try:
            card = fetch_source(f"hf://{hub['repository']}{revision}/README.md", Path()).path
        except CarambaError:  # there is none, or the hub cannot be reached
            return Licence()
    else:
        card = (checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent) / "README.md"
        if isinstance(checkpoint, GgufFile):  # what lies beside a single file may belong to something else
            return Licence()
    return _stated(_front_matter(card))


def _front_matter(card: Path) -> Mapping[str, Any]:
    """The metadata on top of a card; nothing where it cannot be read."""
    try:
        if not card.is_file():  # opening a named pipe would wait for somebody to write
            return {}
        with card.open(encoding="utf-8") as file:
            found = _FRONT.match(file.read(_LONGEST))
        metadata = YAML(typ="safe", pure=True).load(StringIO(found[1])) if found is not None else None
    except (OSError, UnicodeDecodeError, YAMLError, ValueError):
        return {}
    return metadata if isinstance(metadata, Mapping) else {}


def _stated(metadata: Mapping[str, Any]) -> Licence:
    """The licence among a card's metadata; several count as one, and what is no text as none."""
    said = {key: metadata.get(key) for key in ("license", "license_name", "license_link")}
    texts = {
        key: ", ".join(str(part) for part in (value if isinstance(value, list) else [value]) if isinstance(part, str))
        for key, value in said.items()
    }
    return Licence(metadata={key: " ".join(text.split()) for key, text in texts.items() if text.strip()})


def data_lines(group: Mapping[str, Any]) -> dict[str, str]:
    """What a group trains on and what it is measured on, by the manifest's words; files by their names alone."""
    data = group.get("data") or {}
    return {key: _named(data[key]) for key in ("train", "heldout") if data.get(key) is not None}


def _named(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_named(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_named, value))
    text = str(value)
    return text if "://" in text else text.replace("\\", "/").rstrip("/").rpartition("/")[2]
