"""``caramba doctor``: what is installed, what is missing or broken, and what the devices here do."""

from __future__ import annotations

import os
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

import attrs
from caramba_terminal.numbers import format_bytes

from caramba_core.errors import PluginError
from caramba_core.plugins.metadata import CORE
from caramba_core.plugins.registry import Registry
from caramba_plugins_tools.extras import Extra, extras_of

if TYPE_CHECKING:
    import torch

__all__ = ["Device", "Found", "as_data", "examine", "lines"]

_BESIDE: Final = ("caramba", "caramba-document", "caramba-terminal")
"""Distributions that plug into nothing."""

_FOR_WORK: Final = ("test", "check")
"""Extras for work on a distribution itself; of others than the core, ``check`` is for its users."""

_WIDTH: Final = 79
_SECONDS: Final = 0.3
_SIDES: Final = {"cpu": 1024, "mps": 2048, "cuda": 8192}
"""Rows and columns of the matrices that are multiplied: large enough that a faster device would show."""

_COPIED: Final = {"cpu": 128 << 20, "mps": 256 << 20, "cuda": 1 << 30}
"""Bytes that are copied: more than caches hold."""


@attrs.frozen(kw_only=True)
class Device:
    """A device: ``kind`` and ``name`` as torch calls them, its memory in bytes, and what was measured.

    ``matmul`` are operations per second by number type (a multiply-add counts 2), ``copy`` bytes read and written per
    second within its memory.
    """

    kind: str
    name: str
    memory: int
    matmul: Mapping[str, float] = attrs.field(factory=dict)
    copy: float | None = None


@attrs.frozen(kw_only=True)
class Found:
    """What there is: versions by name, states by distribution, devices, extras that are missing, and problems."""

    versions: Mapping[str, str]
    distributions: Mapping[str, tuple[str, str]]
    devices: tuple[Device, ...]
    chosen: str
    extras: tuple[Extra, ...]
    problems: tuple[tuple[str, str, str], ...]


def examine(registry: Registry, *, measure: bool) -> Found:
    """Look at everything; with ``measure`` devices work for about a second each."""
    for plugin in registry.usable():
        for entry in sorted(
            (*plugin.hooks, *plugin.components), key=lambda one: one.kind == "mode"
        ):  # may import torch
            try:
                registry.load(entry)
            except PluginError as error:
                registry.note_failure(entry, error)
    states = {plugin.name: registry.state(plugin) for plugin in registry.plugins.values()}
    problems = [
        (name, problem.message, problem.hint or "")
        for name, (state, found) in states.items()
        for problem in found
        if state != "disabled"
    ]
    devices, chosen, torch_version, problem = _devices(measure=measure)
    if problem:
        problems.append(("torch", problem, "pip install torch"))
    beside = {name: (found, "ok") for name in _BESIDE if (found := _version(name))}
    plugged = {plugin.name: (plugin.version, states[plugin.name][0]) for plugin in registry.plugins.values()}
    return Found(
        versions={
            "caramba": _version(CORE) or "unknown",
            "python": platform.python_version(),
            "torch": torch_version,
            "system": f"{platform.system()} {platform.machine()}",
        },
        distributions=dict(sorted({**beside, **plugged}.items())),
        devices=devices,
        chosen=chosen,
        extras=tuple(
            extra
            for plugin in registry.usable()
            for extra in extras_of(plugin)
            if extra.missing and extra.name not in _FOR_WORK[: 2 if plugin.name == CORE else 1]
        ),
        problems=tuple(problems),
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# ------------------------------------------------------------------------------------------------ devices


def _devices(*, measure: bool) -> tuple[tuple[Device, ...], str, str, str]:
    """The devices, the one that ``device: auto`` takes, torch's version, and why torch cannot be had."""
    try:
        import torch

        from caramba_core.run.device import memory_of, pick_device
    except (ImportError, OSError) as error:  # a library of its own may be missing, too
        return (), "none", _version("torch") or "missing", f"torch cannot be imported: {error}"
    processor = torch.device("cpu")
    found = [Device(kind="cpu", name=f"{os.cpu_count()} cores", memory=memory_of(processor))]
    places = [processor]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        places.append(torch.device("cuda", index))
        name = torch.cuda.get_device_name(places[-1])
        found.append(Device(kind=f"cuda:{index}", name=name, memory=memory_of(places[-1])))
    if torch.backends.mps.is_available():
        places.append(torch.device("mps"))
        found.append(Device(kind="mps", name=platform.processor(), memory=memory_of(processor)))
    if measure:
        found = [_measured(device, place) for device, place in zip(found, places, strict=True)]
    return tuple(found), pick_device("auto").type, str(torch.__version__), ""


def _measured(device: Device, place: torch.device) -> Device:
    """The same device with the speed of its matrix products and of copies in its memory."""
    import torch

    side = _SIDES[place.type]
    matmul = {}
    for dtype in ("float32", "bfloat16"):
        a = torch.randn(side, side, device=place).to(getattr(torch, dtype))
        matmul[dtype] = 2 * side**3 * _per_second(lambda a=a: a @ a, place)  # type: ignore[misc]
    source = torch.ones(_COPIED[place.type] // 4, device=place)
    target = torch.empty_like(source)
    copies = _per_second(lambda: target.copy_(source), place)
    return attrs.evolve(device, matmul=matmul, copy=2 * _COPIED[place.type] * copies)


def _per_second(work: Callable[[], object], place: torch.device) -> float:
    """How often a second a device does some work; the first time is left out."""
    import torch

    def done() -> None:
        if place.type != "cpu":
            torch.accelerator.synchronize(place)

    work()
    done()
    count, batch, began = 0, 1, time.perf_counter()
    while (spent := time.perf_counter() - began) < _SECONDS:
        for _ in range(batch):
            work()
        done()
        count += batch
        batch = min(64, 2 * batch) if place.type != "cpu" else 1
    return count / spent


# ------------------------------------------------------------------------------------------------ what is said


def as_data(found: Found) -> dict[str, Any]:
    """The same as plain data; speeds in operations and in bytes per second."""
    return {
        "versions": dict(found.versions),
        "distributions": [
            {"name": name, "version": number, "state": state} for name, (number, state) in found.distributions.items()
        ],
        "devices": [attrs.asdict(device) for device in found.devices],
        "device": found.chosen,
        "missing_extras": [
            {
                "distribution": extra.distribution,
                "extra": extra.name,
                "missing": list(extra.missing),
                "command": extra.command,
            }
            for extra in found.extras
        ],
        "problems": [
            {"distribution": name, "message": message, "hint": hint} for name, message, hint in found.problems
        ],
    }


def lines(found: Found) -> Iterator[str]:
    """What the terminal shows, in 80 columns."""
    said = found.versions
    yield f"caramba {said['caramba']}, Python {said['python']}, torch {said['torch']}, {said['system']}"
    yield ""
    yield "distributions"
    widest = max(map(len, found.distributions))
    for name, (number, state) in found.distributions.items():
        yield f"  {name:<{widest}}  {number:<8}  {state}"
    yield ""
    yield f"devices (device: auto takes {found.chosen})"
    for device in found.devices:
        memory = f", {format_bytes(device.memory)}" if device.memory else ""
        yield f"  {device.kind:<7} {device.name}{memory}"
        if device.matmul:
            products = ", ".join(f"{_rate(rate, 'FLOP/s')} in {dtype}" for dtype, rate in device.matmul.items())
            yield f"  {'':<7} matrix products {products}"
        if device.copy is not None:
            yield f"  {'':<7} copies {_rate(device.copy, 'B/s')} read and written"
    yield ""
    yield "extras that are missing" if found.extras else "no extra is missing"
    for extra in found.extras:
        yield f"  {extra.command}"
        yield from _wrapped(f"brings {', '.join(extra.missing)}", 6)
    yield ""
    yield "problems" if found.problems else f"no problem: every plugin loads ({sys.executable})"
    for name, message, hint in found.problems:
        yield from _wrapped(f"{name}: {message}", 2)
        if hint:
            yield from _wrapped(f"hint: {hint}", 6)


def _rate(rate: float, unit: str) -> str:
    scale, letter = next(((s, letter) for s, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if rate >= s), (1.0, ""))
    return f"{rate / scale:.3g} {letter}{unit}"


def _wrapped(text: str, indent: int) -> list[str]:
    lead = " " * indent
    return textwrap.wrap(
        text, _WIDTH, initial_indent=lead, subsequent_indent=f"{lead}  ", break_long_words=False, break_on_hyphens=False
    )
