"""What the plan said of a run that goes on."""

from __future__ import annotations

import json
from typing import Any

from caramba_core.run.context import RunContext

__all__ = ["planned"]


def planned(context: RunContext) -> dict[str, Any]:
    """The run's entry in its ``plan.json``; empty where that is gone, or has none."""
    try:
        plan = json.loads((context.directory.path / "plan.json").read_text(encoding="utf-8"))
        return next((dict(run) for run in plan["runs"] if run["id"] == context.run.id), {})
    except (OSError, ValueError, KeyError, TypeError):
        return {}
