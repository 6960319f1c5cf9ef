"""Extras of distributions: which there are, and what of them is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, version

import attrs

from caramba_core.plugins.metadata import Plugin, applies, extra_of, required

__all__ = ["Extra", "extras_of"]


@attrs.frozen(kw_only=True)
class Extra:
    """One extra of a distribution, and the distributions that it would bring and that are not there."""

    distribution: str
    name: str
    missing: tuple[str, ...]

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install '{self.distribution}[{self.name}]'"


def extras_of(plugin: Plugin) -> Iterator[Extra]:
    """The extras of a plugin, without those that are made of its others."""
    for extra in metadata(plugin.name).get_all("Provides-Extra", ()):
        wanted = [required(one)[0] for one in plugin.requirements if extra_of(one) == extra and applies(one, extra)]
        if plugin.name not in wanted:
            missing = tuple(name for name in wanted if not _is_installed(name))
            yield Extra(distribution=plugin.name, name=extra, missing=missing)


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
