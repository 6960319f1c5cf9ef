"""Calling hooks: order, faults, traces."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caramba_core.errors import NumericalStop, PluginError
from caramba_core.plugins.registry import registry
from tests.plugins.site import Site

HEAD = "from caramba_core.hookspecs import hookimpl, Section\ncalls = []\n"


OTHERS = "caramba-plugins-report,caramba-plugins-standard"
"""Shipped plugins whose hooks need a real run."""


@pytest.fixture
def plugin(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a hook module under a letter."""
    monkeypatch.setenv("CARAMBA_DISABLE_PLUGINS", OTHERS)

    def install(letter: str, text: str) -> None:
        module = f"made_up_{letter}"
        site.add(f"caramba-plugin-{letter}", entries={"caramba": {letter: module}}, modules={module: HEAD + text})

    return install


def told(*letters: str) -> list[Any]:
    import sys

    return [sys.modules[f"made_up_{letter}"].calls for letter in letters]


def test_an_implementation_takes_what_it_needs(plugin: Callable[..., None]) -> None:
    plugin("a", "@hookimpl\ndef step_finished(step): calls.append(step)")
    plugin("b", "@hookimpl\ndef step_finished(metrics, context): calls.append((context, metrics['loss']))")
    registry().hooks.step_finished(context="run", step=3, metrics={"loss": 2.5})
    assert told("a", "b") == [[3], [("run", 2.5)]]


def test_order_is_that_of_names(plugin: Callable[..., None]) -> None:
    """Among those that want to be first or last, too."""
    section = "@hookimpl({})\ndef plan_sections(plan): return [Section(title='{}', columns=(), rows=())]"
    options = {
        "a": "trylast=True",
        "d": "tryfirst=True",
        "e": "trylast=True",
        "f": "tryfirst=True",
        "g": "trylast=True",
    }
    for letter in "cgaefbd":
        plugin(letter, section.format(options.get(letter, ""), letter))
    assert "".join(part.title for parts in registry().hooks.plan_sections(plan=None) for part in parts) == "dfbcaeg"


def test_one_module_may_be_first_and_last(plugin: Callable[..., None]) -> None:
    both = (
        "@hookimpl(tryfirst=True)\ndef run_started(context): context.append('{0} first')\n"
        "@hookimpl(trylast=True, specname='run_started')\ndef at_last(context): context.append('{0} last')\n"
    )
    plugin("a", both.format("a"))
    plugin("b", both.format("b"))
    calls: list[str] = []
    registry().hooks.run_started(context=calls)
    assert calls == ["a first", "b first", "a last", "b last"]


@pytest.mark.parametrize("hook", ["step_finished", "evaluated", "checkpoint_saved", "run_finished", "run_failed"])
def test_a_fault_in_an_observer_lets_the_run_go_on(
    plugin: Callable[..., None], caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    plugin("a", f"@hookimpl\ndef {hook}(context):\n    calls.append(1)\n    raise OSError('no network')")
    plugin("b", f"@hookimpl\ndef {hook}(context): calls.append(1)")
    every: dict[str, dict[str, Any]] = {
        "step_finished": {"step": 1, "metrics": {}},
        "evaluated": {"step": 1, "results": {}},
        "checkpoint_saved": {"path": Path()},
        "run_finished": {"summary": {}},
        "run_failed": {"error": ValueError()},
    }
    arguments = every[hook]
    with caplog.at_level(logging.WARNING):
        getattr(registry().hooks, hook)(context=None, **arguments)
        getattr(registry().hooks, hook)(context=None, **arguments)
    assert told("a", "b") == [[1], [1, 1]]  # a is not called again, b does not notice
    (record,) = caplog.records
    assert f"plugin caramba-plugin-a 1.0 failed in the hook {hook}" in record.getMessage()
    assert "OSError: no network" in record.getMessage()
    assert "switch it off: --no-plugin caramba-plugin-a" in record.getMessage()


@pytest.mark.parametrize("hook", ["run_started", "model_built"])
@pytest.mark.parametrize("fault", ["ValueError('x')", "SystemExit(4)"])
def test_a_fault_before_the_first_step_stops_the_run(plugin: Callable[..., None], hook: str, fault: str) -> None:
    plugin("a", f"@hookimpl\ndef {hook}(context): raise {fault}")
    with pytest.raises(PluginError) as caught:
        getattr(registry().hooks, hook)(context=None, **({"model": None} if hook == "model_built" else {}))
    assert f"plugin caramba-plugin-a 1.0 failed in the hook {hook}" in str(caught.value)
    assert "--no-plugin caramba-plugin-a" in str(caught.value)


def test_a_stop_that_is_meant_keeps_its_exit_code(plugin: Callable[..., None]) -> None:
    raises = "from caramba_core.errors import NumericalStop\n@hookimpl\ndef {}(context): raise NumericalStop('flat')"
    plugin("a", raises.format("step_finished") + "\n" + raises.format("run_failed"))
    with pytest.raises(NumericalStop, match="flat"):
        registry().hooks.step_finished(context=None, step=1, metrics={})
    registry().hooks.run_failed(context=None, error=ValueError())  # the first error counts


def test_trace(plugin: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    plugin("a", "@hookimpl\ndef step_finished(step): pass")
    monkeypatch.setenv("CARAMBA_PLUGINS_TRACE", "1")
    registry().hooks.step_finished(context=None, step=7, metrics={"loss": 0.5})
    registry().hooks.run_started(context=None)
    told = capfd.readouterr().err
    assert "caramba: step_finished(context=NoneType, step=7, metrics={'loss': 0.5}) -> 1 plugins" in told
    assert "caramba: step_finished <- caramba-plugin-a:a in " in told
    assert "caramba: run_started(context=NoneType) -> 0 plugins" in told


def test_switched_off_plugins_are_not_imported(plugin: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    plugin("a", "raise RuntimeError")
    monkeypatch.setenv("CARAMBA_DISABLE_PLUGINS", f"{OTHERS},caramba-plugin-a")
    registry().hooks.run_started(context=None)
