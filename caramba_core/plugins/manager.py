"""Loading hook modules and calling them so that a fault names its plugin and stops no more than it must."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, wraps
from inspect import Parameter, signature
from types import ModuleType
from typing import Any

import pluggy

from caramba_core import hookspecs
from caramba_core.errors import CarambaError, PluginError
from caramba_core.plugins.metadata import ComponentEntry
from caramba_core.plugins.registry import Registry, registry
from caramba_core.suggestions import nearest

__all__ = ["RANK_VARIABLE", "TRACE_VARIABLE", "PluginManager", "hooks", "manager", "registered_alone"]

TRACE_VARIABLE = "CARAMBA_PLUGINS_TRACE"
RANK_VARIABLE = "RANK"
"""Which of several processes this is, as ``torchrun`` says; unset for a single one."""

_PROJECT = hookspecs.hookimpl.project_name
_log = logging.getLogger("caramba.plugins")


class PluginManager:
    """The hook modules of a registry's usable plugins, loaded in the order of their distributions' names.

    A module that cannot be imported or registered is reported and left out; the registry then refuses the components of
    its distribution, because half a plugin may compute something else than its author meant.  ``only`` names the
    distributions to load; all of them by default.  ``warn=False`` leaves the report to who asks the registry.
    """

    def __init__(self, registry: Registry, *, only: Sequence[str] | None = None, warn: bool = True) -> None:
        self._pluggy = pluggy.PluginManager(_PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        self.modules: dict[ComponentEntry, Any] = {}
        if os.environ.get(TRACE_VARIABLE, "0") not in ("", "0"):
            self._pluggy.add_hookcall_monitoring(_trace_call, lambda outcome, name, implementations, arguments: None)
        plugins = [plugin for plugin in registry.usable() if only is None or plugin.name in only]
        entries = sorted(entry for plugin in plugins for entry in plugin.hooks)
        for entry in reversed(entries):  # pluggy calls the last registered first
            try:
                self.register(entry, registry.load(entry))
            except PluginError as error:
                registry.note_failure(entry, error)
                if warn:
                    _log.warning("warning: plugin %s takes no part: %s", entry.distribution, error)

    @property
    def relay(self) -> pluggy.HookRelay:
        """What calls hooks: ``relay.step_finished(context=..., step=..., metrics=...)``."""
        return self._pluggy.hook

    def register(self, entry: ComponentEntry, module: Any, *, guard: bool = True) -> None:
        """Add the hooks of a module; ``guard`` keeps its faults from stopping more than they must."""
        guarded = ModuleType(entry.qualified)
        for name in dir(module):
            options = self._pluggy.parse_hookimpl_opts(module, name)
            if options is None:
                continue
            hook, function = options.get("specname") or name, getattr(module, name)
            self._check(entry, hook, function, wrapper=options["wrapper"] or options["hookwrapper"])
            setattr(guarded, name, _guarded(entry, hook, function) if guard else function)
        try:
            self._pluggy.register(guarded, name=entry.qualified)
        except pluggy.PluginValidationError as error:
            if self._pluggy.is_registered(guarded):
                self._pluggy.unregister(guarded)
            reason = str(error).splitlines()[-1]
            raise PluginError(
                f"{entry} {entry.version} is broken: {reason}",
                hint=f"docs/plugins.md lists each hook's arguments; this is a fault of {entry.distribution}",
            ) from error
        self.modules[entry] = module

    def _check(self, entry: ComponentEntry, hook: str, function: Callable[..., Any], *, wrapper: bool) -> None:
        known = [name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), f"{_PROJECT}_spec")]
        if hook not in known:
            near = nearest(hook, known)
            raise PluginError(
                f"{entry} {entry.version} is broken: it implements {hook!r}, which is no hook",
                expected=f"one of {', '.join(known)}",
                hint=f"did you mean {near[0]!r}?" if near else "docs/plugins.md lists the hooks",
            )
        if wrapper:
            raise PluginError(
                f"{entry} {entry.version} is broken: {hook!r} is a hook wrapper",
                expected="a plain function: hooks of caramba cannot be wrapped",
                hint="use tryfirst=True or trylast=True",
            )
        given = signature(getattr(hookspecs, hook)).parameters
        surplus = [name for name, one in signature(function).parameters.items() if _is_asked(one) and name not in given]
        if surplus:
            near = nearest(surplus[0], given)
            raise PluginError(
                f"{entry} {entry.version} is broken: its hook {hook!r} takes the argument {surplus[0]!r}",
                expected=f"any of {', '.join(given)}" if given else "no arguments",
                hint=f"did you mean {near[0]!r}?" if near else f"docs/plugins.md lists what {hook} is given",
            )


def _is_asked(parameter: Parameter) -> bool:
    """Whether a hook has to give this argument: it has no default."""
    return parameter.default is Parameter.empty


def _guarded(entry: ComponentEntry, hook: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A hook implementation whose faults name its plugin; see :mod:`caramba_core.hookspecs` for what they stop."""
    observes = hook in hookspecs.OBSERVERS
    elsewhere = hook not in hookspecs.EVERY_PROCESS and os.environ.get(RANK_VARIABLE, "0") != "0"
    traced = os.environ.get(TRACE_VARIABLE, "0") not in ("", "0")
    given_up = False

    @wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal given_up
        if given_up or elsewhere:
            return None
        started = time.perf_counter()
        try:
            result = function(*arguments)
            return hookspecs.checked_sections(result) if hook in hookspecs.SECTIONS else result
        except CarambaError:
            if hook != "run_failed":
                raise
            _log.warning("warning: plugin %s failed in run_failed", entry.distribution, exc_info=True)
        except (Exception, SystemExit) as error:
            said = f"{type(error).__name__}: {error}"
            if not observes:
                raise PluginError(
                    f"plugin {entry.distribution} {entry.version} failed in the hook {hook}: {said}",
                    hint=f"report it to the plugin's author, or switch it off: --no-plugin {entry.distribution}",
                ) from error
            given_up = True
            _log.warning(
                "warning: plugin %s %s failed in the hook %s, which is not called again in this process: %s\n"
                "  hint: report it to the plugin's author (%s=1 shows where), or switch it off: --no-plugin %s",
                entry.distribution,
                entry.version,
                hook,
                said,
                TRACE_VARIABLE,
                entry.distribution,
                exc_info=traced,
            )
        finally:
            if traced:
                milliseconds = (time.perf_counter() - started) * 1e3
                print(f"caramba: {hook} <- {entry.qualified} in {milliseconds:.2f} ms", file=sys.stderr)  # noqa: T201
        return None

    return call


def _trace_call(name: str, implementations: Any, arguments: Any) -> None:
    shown = ", ".join(f"{key}={_short(value)}" for key, value in arguments.items())
    print(f"caramba: {name}({shown}) -> {len(implementations)} plugins", file=sys.stderr)  # noqa: T201


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, (int, float, str, dict)) else type(value).__name__
    return text if len(text) <= 100 else f"{text[:100]}..."


def registered_alone(module: ModuleType) -> pluggy.HookRelay:
    """The hooks of one module, unguarded, for tests of it; :class:`PluginError` where it could not be registered."""
    alone = PluginManager(Registry({}))
    entry = ComponentEntry("hooks", module.__name__, "the plugin under test", "", module.__name__)
    alone.register(entry, module, guard=False)
    return alone.relay


@cache
def manager() -> PluginManager:
    """The plugin manager of this process."""
    return PluginManager(registry())


def hooks() -> pluggy.HookRelay:
    """The hooks of every usable plugin; the first call imports their hook modules."""
    return manager().relay
