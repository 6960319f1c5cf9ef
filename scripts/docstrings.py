"""Roles of docstrings (``:class:`~a.b.C```) as links of the site: an extension of griffe that ``mkdocs.yml`` names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from griffe import Extension, Module, Object

__all__ = ["Roles", "plain"]

_ROLE: Final = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")
_ROW: Final = re.compile(r"^\| `([\w.]+)` \|[^|]+\| ([^|]*) \|$", re.MULTILINE)


def _public() -> frozenset[str]:
    page = Path(__file__).resolve().parents[1] / "docs" / "public.md"
    names = set()
    for module, exported in _ROW.findall(page.read_text(encoding="utf-8")):
        names |= {module, *(f"{module}.{name}" for name in re.findall(r"`(\w+)`", exported))}
    return frozenset(names)


def plain(text: str, module: str, public: frozenset[str]) -> str:
    """A docstring of ``module`` with its roles as links where they name something public, else as code."""

    def link(role: re.Match[str]) -> str:
        name = role[1].rpartition(".")[2]
        found = next((path for path in (role[1], f"{module}.{role[1]}") if path in public), None)
        return f"[`{name}`][{found}]" if found else f"`{name}`"

    return _ROLE.sub(link, text)


class Roles(Extension):
    """Rewrites each docstring as it is read."""

    def __init__(self) -> None:
        self._public = _public()

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value, obj.module.path, self._public)

    def on_module(self, *, mod: Module, **_: Any) -> None:
        """Rewrite the docstring of a module."""
        if mod.docstring is not None:
            mod.docstring.value = plain(mod.docstring.value, mod.path, self._public)
