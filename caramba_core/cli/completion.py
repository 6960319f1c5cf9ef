"""What the shell offers for a parameter: plugins say it, in the entry-point group ``caramba.completer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

__all__ = ["completed"]


def completed(name: str) -> Callable[[typer.Context, str], list[str]]:
    """For ``autocompletion=`` of a parameter: the values of the completers with this name; none where nobody has it."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        from caramba_core.errors import CarambaError
        from caramba_core.plugins.registry import registry

        rest = iter(ctx.args)  # arguments end here while the option behind them has no value yet
        arguments = (str(one.name) for one in ctx.command.params if one.param_type_name == "argument")
        given: dict[str, Any] = {name: next(rest, None) for name in arguments}
        given.update((name, value) for name, value in ctx.params.items() if value is not None)
        entries = [entry for entry in registry().entries("completer") if entry.name == name]
        try:
            return [value for entry in entries for value in registry().load(entry)(given, incomplete)]
        except (CarambaError, OSError):  # what cannot be read has nothing to offer, and here is no place to say so
            return []

    return complete
