"""What one reading of a manifest shares: problems found so far, bounds on its size, uses of variables."""

from __future__ import annotations

from typing import Final, Unpack

import attrs

from caramba_document.problem import About, ManifestProblem, Path, shown
from caramba_document.source import TextSpan
from caramba_document.tree import MAX_DEPTH, Gap, Node, plain

__all__ = ["Reading", "check_depth"]

_MOST_PROBLEMS: Final = 200
_MOST_WRITTEN: Final = 50_000
_MOST_EXPANDED: Final = 200_000


@attrs.define
class Reading:
    """``problems`` are as many as a person might still read, ``left_out`` counts the rest.

    ``written`` counts the values that texts hold, aliases and merges expanded, ``expanded`` those that variables and
    groups add.  ``used`` are the variables that were asked for and found, ``unknown`` the places that ask for each name
    that is not declared, and whether that place is a group that sets it.
    """

    problems: list[ManifestProblem] = attrs.field(factory=list)
    left_out: int = 0
    written: int = 0
    expanded: int = 0
    used: set[str] = attrs.field(factory=set)
    unknown: dict[str, dict[str, tuple[TextSpan, bool]]] = attrs.field(factory=dict)

    def report(self, *problems: ManifestProblem) -> None:
        """Add problems, or count them."""
        room = _MOST_PROBLEMS - len(self.problems)
        self.problems.extend(problems[:room])
        self.left_out += len(problems[room:])

    def gap(self, span: TextSpan, message: str, **about: Unpack[About]) -> Gap:
        """Report a problem; the gap stands where the value would."""
        self.report(span.problem(message, **about))
        return Gap(span)

    def mismatch(self, node: Node, wanted: str, path: Path = (), notes: tuple[str, ...] = ()) -> Gap:
        """Report that a value is not what is wanted; of a gap the reason is reported already."""
        if isinstance(node, Gap):
            return node
        found = shown(plain(node))
        message = f"expected {wanted}, found {found}"
        return self.gap(node.span, message, path=path, found=found, expected=wanted, notes=notes)

    def write(self, size: int, span: TextSpan) -> None:
        """Count values of a text; raises :class:`~caramba_document.source.Broken` where they are too many."""
        self.written += size
        _check_size(self.written, _MOST_WRITTEN, span)

    def expand(self, size: int, span: TextSpan) -> None:
        """Count values that variables and groups add; raises as :meth:`write`."""
        self.expanded += size
        _check_size(self.expanded, _MOST_EXPANDED, span)

    def miss(self, name: str, span: TextSpan, *, setting: bool = False) -> None:
        """Note a place that asks for a variable that is not declared."""
        self.unknown.setdefault(name, {}).setdefault(span.place, (span, setting))


def _check_size(size: int, most: int, span: TextSpan) -> None:
    if size > most:
        hint = "write layers that are alike once, with repeat:"
        raise span.broken(f"the manifest expands to more than {most} values here", hint=hint)


def check_depth(depth: int, span: TextSpan) -> None:
    """Raise :class:`~caramba_document.source.Broken` where lists and mappings nest too deep."""
    if depth > MAX_DEPTH:
        raise span.broken(f"lists and mappings nest more than {MAX_DEPTH} deep here")
