"""``caramba compile``: check a manifest and plan it."""

from __future__ import annotations

from typing import Annotated

import typer

from caramba_core.cli.completion import completed

__all__ = ["command"]


def command(
    manifest: Annotated[
        str, typer.Argument(help="a manifest file, or a preset's name", autocompletion=completed("manifest"))
    ],
    print_plan: Annotated[bool, typer.Option("--print-plan", help="show the model and what each run needs")] = False,
    resolved: Annotated[bool, typer.Option("--resolved", help="print the manifest with everything filled in")] = False,
    json: Annotated[bool, typer.Option("--json", help="the plan as data; the same as --format json")] = False,
    group: Annotated[str | None, typer.Option(help="only this group", autocompletion=completed("group"))] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="tokens that operations and cache are stated for; the longest run's")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="spell repeated blocks out")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="path=value: vars.sem_dim=24", autocompletion=completed("setting"))
    ] = None,
    format: Annotated[str, typer.Option(help="text, or json for the plan and for errors as data")] = "text",
) -> None:
    """Check a manifest and plan it: parameters, operations, cache and memory, without torch."""
    import sys
    from contextlib import redirect_stdout

    from caramba_document.writing import dump

    from caramba_core.errors import InputError, PluginError
    from caramba_core.manifest.load import load_manifest
    from caramba_core.plan import plan_manifest
    from caramba_core.plan.data import plan_document

    if format not in ("text", "json"):
        raise InputError(f"there is no format {format!r}", expected="text or json")
    with redirect_stdout(sys.stderr):  # where what components print goes
        loaded = load_manifest(manifest, overrides=set_ or [])
        names = [known.name for known in loaded.manifest.groups]
        if group is not None and group not in names:
            known_names = ", ".join(names) or "no --group: it has no groups"
            raise InputError(f"there is no group {group!r}", expected=known_names)
        plans = plan_manifest(loaded, group=group, context=context)
        data = [plan_document(plan) for plan in plans] if json or format == "json" else None
    if resolved:
        document = loaded.document if group is None else loaded.resolved_group(group)
        typer.echo(dump(document, loaded.teacher_keys(group)), nl=False)
    elif data is not None:
        from json import dumps

        typer.echo(dumps(data, indent=1))
    elif print_plan or full:
        from caramba_core.plugins.registry import registry

        show = registry().hooks.show_plans
        if not show.get_hookimpls():
            problem = "no installed plugin shows plans on the terminal"
            raise PluginError(problem, hint="--json gives them as data; a plugin with the hook show_plans shows them")
        show(plans=plans, full=full)
    else:
        for plan in plans:
            typer.echo(plan.line())
