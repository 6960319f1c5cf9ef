"""Numbers as people read them: counts, bytes, ranges of indexes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = [
    "format_average",
    "format_bytes",
    "format_count",
    "format_duration",
    "format_indexes",
    "format_measured",
    "format_speed",
]

_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_BYTES = ((2**40, " TiB"), (2**30, " GiB"), (2**20, " MiB"), (2**10, " KiB"))


def format_count(count: float) -> str:
    """Three digits and a unit: ``1.24B``, ``134M``, ``12.3k``; below 10,000 exactly: ``9,216``."""
    return f"{count:,.0f}" if count < 10_000 else _scaled(count, _COUNTS)


def format_bytes(count: float) -> str:
    """Bytes in binary units: ``2.3 GiB``, ``512 KiB``, ``96 B``."""
    return f"{count:.0f} B" if count < 1024 else _scaled(count, _BYTES)


def format_average(number: float) -> str:
    """Bytes or values per token: ``46,080``; below 10 with one digit where they are no whole number: ``0.5``."""
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def format_measured(value: float, error: float | None) -> str:
    """A measured figure and its standard error: ``34.04 ± 0.77``, ``46,714 ± 550``."""
    digits = 2 if value < 1000 else 0
    return f"{value:,.{digits}f}" + ("" if error is None else f" ± {error:,.{digits}f}")


def _scaled(count: float, units: Iterable[tuple[float, str]]) -> str:
    size, unit = next((size, unit) for size, unit in units if count >= size)
    scaled = count / size
    return f"{scaled:.3g}{unit}" if scaled < 999.5 else f"{scaled:,.0f}{unit}"


def format_indexes(names: Sequence[str]) -> str:
    """Names that are indexes as ranges, ``0-7, 9``; other names as they are, separated by commas."""
    if not all(name.isdigit() for name in names):
        return ", ".join(names)
    ranges: list[list[int]] = []
    for index in map(int, names):
        if ranges and index == ranges[-1][1] + 1:
            ranges[-1][1] = index
        else:
            ranges.append([index, index])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)


def format_duration(seconds: float) -> str:
    """Seconds up to ten minutes, then hours and minutes: ``142 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def format_speed(per_second: float) -> str:
    """How many a second: ``1,234``, ``3``; less than one with two digits: ``0.064``."""
    return f"{per_second:,.0f}" if per_second >= 1 else f"{per_second:.2g}"
