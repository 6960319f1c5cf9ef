"""A trace of a few steps, for Perfetto or chrome://tracing."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from caramba_core.run.context import RunContext
from caramba_plugins_standard.training import Profile

__all__ = ["Profiler"]


class Profiler:
    """torch's profiler over the steps from the first to the last of ``settings``, both included."""

    def __init__(self, settings: Profile | None, context: RunContext) -> None:
        self._settings = settings
        self._context = context
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Begin where ``step`` (1-based) is the first."""
        if self._settings is not None and step == self._settings.steps[0]:
            cuda = [ProfilerActivity.CUDA] if self._context.device.type == "cuda" else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda])
            self._profile.start()

    def behind(self, step: int, *, ends: bool) -> None:
        """Write the trace where ``step`` was the last of them, or where the run ``ends`` behind it."""
        if self._profile is None or self._settings is None or (step < self._settings.steps[1] and not ends):
            return
        if self._context.device.type == "cuda":
            torch.cuda.synchronize(self._context.device)
        self._profile.stop()
        first = self._settings.steps[0]
        path = self._context.directory.path / f"trace_{first:06d}_{step:06d}.json.gz"
        temporary = path.with_name(f".{path.name}")  # removed with the next start where this process dies
        self._profile.export_chrome_trace(str(temporary))
        temporary.replace(path)
        self._profile = None
        self._context.reporter.line(f"trace of steps {first} to {step}: {path} (ui.perfetto.dev opens it)")
