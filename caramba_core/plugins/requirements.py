"""A manifest's ``requires:``: distributions with version ranges (PEP 508 and 440)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from caramba_core.errors import PluginError
from caramba_core.plugins.metadata import Plugin, normalized
from caramba_core.suggestions import nearest

__all__ = ["check_requirement"]


def check_requirement(requirement: str, plugins: Mapping[str, Plugin], switched_off: frozenset[str]) -> None:
    """Raise :class:`PluginError` unless the distribution is installed, in the range, and usable."""
    from packaging.requirements import InvalidRequirement, Requirement  # listings do without the parser

    try:
        wanted = Requirement(requirement)
    except InvalidRequirement:
        raise PluginError(
            f"{requirement!r} names no distribution",
            expected="a distribution with an optional version range, such as caramba-plugins-dba>=0.1,<0.2",
        ) from None
    name = normalized(wanted.name)
    plugin = plugins.get(name)
    if plugin is not None:
        found = plugin.version
    else:
        try:
            found = version(name)
        except PackageNotFoundError:
            near = nearest(name, plugins)
            hint = f"pip install '{wanted}'"
            raise PluginError(
                f"the manifest requires {wanted}, which is not installed",
                hint=f"did you mean {near[0]!r}? Otherwise: {hint}" if near else hint,
            ) from None
    if not wanted.specifier.contains(found, prereleases=True):
        raise PluginError(
            f"the manifest requires {wanted}, but {name} {found} is installed",
            expected=f"{name}{wanted.specifier}",
            hint=f"pip install '{wanted}'",
        )
    if name in switched_off:
        raise PluginError(
            f"the manifest requires {wanted}, which is switched off",
            hint=f"leave out --no-plugin {name}, or take it out of CARAMBA_DISABLE_PLUGINS",
        )
    if plugin is not None:
        problem = plugin.incompatible or plugin.damaged
        if problem is not None:
            raise PluginError(f"the manifest requires {wanted}: {problem.message}", hint=problem.hint)
