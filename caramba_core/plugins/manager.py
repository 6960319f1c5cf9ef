"""Loading hook modules and calling them so that a fault names its plugin and stops no more than it must."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Mapping
from functools import wraps
from types import ModuleType
from typing import Any

import pluggy

from caramba_core import hookspecs
from caramba_core.errors import CarambaError, PluginError
from caramba_core.plugins.guard import plugin_code, what_was_raised
from caramba_core.plugins.loading import check_hooks
from caramba_core.plugins.metadata import ComponentEntry

__all__ = ["TRACE_VARIABLE", "load_hooks", "registered_alone"]

TRACE_VARIABLE = "CARAMBA_PLUGINS_TRACE"

_log = logging.getLogger("caramba.plugins")


def load_hooks(entries: Iterable[ComponentEntry], load: Callable[[ComponentEntry], Any]) -> pluggy.HookRelay:
    """The hooks of these modules: ``relay.step_finished(context=..., step=..., metrics=...)`` calls them.

    A module that ``load`` refuses is reported and left out; the registry then refuses the components of its
    distribution, because half a plugin may compute something else than its author meant.
    """
    modules = {}
    for entry in entries:
        try:
            modules[entry] = load(entry)
        except PluginError as error:
            _log.warning("warning: plugin %s takes no part: %s", entry.distribution, error)
    return _relay(modules, _guarded)


def registered_alone(module: ModuleType) -> pluggy.HookRelay:
    """The hooks of one module, unguarded, for tests of it; :class:`PluginError` where they are no hooks."""
    entry = ComponentEntry("hooks", module.__name__, "the plugin under test", "", module.__name__)
    check_hooks(entry, module)
    return _relay({entry: module}, lambda entry, hook, function: function)


def _relay(modules: Mapping[ComponentEntry, Any], guard: Callable[..., Any]) -> pluggy.HookRelay:
    """What calls the hooks of these modules, in the order of their distributions' names."""
    manager = pluggy.PluginManager(hookspecs.hookimpl.project_name)
    manager.add_hookspecs(hookspecs)
    if _is_traced():
        manager.add_hookcall_monitoring(_trace_call, lambda outcome, name, implementations, arguments: None)
    order = sorted(modules)
    # pluggy calls the implementation that was registered last first, but last where it has trylast=True.
    for trylast, entries in ((False, reversed(order)), (True, order)):
        for entry in entries:
            part = ModuleType(f"{entry.qualified}{' (trylast)' if trylast else ''}")
            for name, hook, options in hookspecs.implementations(modules[entry]):
                if options["trylast"] == trylast:
                    setattr(part, name, guard(entry, hook, getattr(modules[entry], name)))
            manager.register(part)
    return manager.hook


def _guarded(entry: ComponentEntry, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A hook implementation whose faults name its plugin; see :mod:`caramba_core.hookspecs` for what they stop."""
    is_left_out = False
    is_traced = _is_traced()
    failed = f"plugin {entry.distribution} {entry.version} failed in the hook {hook}"
    switch = f"switch it off: --no-plugin {entry.distribution}"

    @wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal is_left_out
        if is_left_out:
            return None
        started = time.perf_counter()
        try:
            with plugin_code(quiet=hook in hookspecs.QUIET):
                result = function(*arguments)
            if isinstance(result, Coroutine | Generator | AsyncGenerator):
                raise TypeError(f"it gives a {type(result).__name__}, which nothing runs")
            return hookspecs.checked_sections(result) if hook in hookspecs.SECTIONS else result
        except Exception as error:
            if isinstance(error, CarambaError) and hook != "run_failed":
                raise
            raised = what_was_raised(error)
            said = f"{type(raised).__name__}: {raised}"
            if hook not in hookspecs.OBSERVERS:
                raise PluginError(f"{failed}: {said}", hint=f"report it to the plugin's author, or {switch}") from error
            is_left_out = True
            once = f"{failed}, which is not called again in this process: {said}"
            hint = f"report it to the plugin's author ({TRACE_VARIABLE}=1 shows where), or {switch}"
            _log.warning("warning: %s\n  hint: %s", once, hint, exc_info=is_traced)
        finally:
            if is_traced:
                milliseconds = (time.perf_counter() - started) * 1e3
                print(f"caramba: {hook} <- {entry.qualified} in {milliseconds:.2f} ms", file=sys.stderr)  # noqa: T201
        return None

    return call


def _is_traced() -> bool:
    return os.environ.get(TRACE_VARIABLE, "0") not in ("", "0")


def _trace_call(name: str, implementations: Any, arguments: Any) -> None:
    shown = ", ".join(f"{key}={_short(value)}" for key, value in arguments.items())
    print(f"caramba: {name}({shown}) -> {len(implementations)} plugins", file=sys.stderr)  # noqa: T201


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, (int, float, str, dict)) else type(value).__name__
    return text if len(text) <= 100 else f"{text[:100]}..."
