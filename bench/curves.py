"""Tables and pictures of ``docs/dba-record.md``, made of ``dba.jsonl`` and ``kinds.jsonl`` in ``docs/measurements``.

    python bench/curves.py            write both (pictures need matplotlib: pip install matplotlib)
    python bench/curves.py --check    say whether the tables are what the records give

A record is one line of JSON.  ``kind: model`` is one measured model: ``attention``, ``cached_values`` a layer and
token, ``cache`` (full, int8, int4), ``cache_bytes`` a token in bfloat16 over all layers, training ``tokens``,
``start``, and the ``ratio`` of its perplexity to the teacher's on each text (null where it was not measured).
``kind: ablation`` is one variant of the start, ``kind: control`` one other start with what training makes of it,
``kind: kinds`` one model or rival over kinds of text at one context, as ``bench/kinds.py`` prints it (without ``kl``
and ``top1`` where perplexity alone was measured): where several have one name and context, they are seeds.  All say
date, commit, device and command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "dba-record.md"
RECORDS = DOCS / "measurements" / "dba.jsonl"
KINDS = DOCS / "measurements" / "kinds.jsonl"
PICTURES = DOCS / "pictures"
TEXTS = {"austen": "Austen", "moby": "Moby Dick"}
NAMES = {
    "gqa": "teacher",
    "dba": "DBA",
    "dba by layer": "DBA, sizes by layer",
    "dba servable": "DBA, servable",
    "mla": "MLA",
    "sliding_window": "sliding window",
    "linear_attention": "linear attention",
}
INK, MUTED, GRID = "#1f2328", "#656d76", "#d0d7de"
_FLOOR = 0.1
"""Percent: what is less than this is drawn here."""
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe and Ito: told apart by everybody

END = "<!-- end -->"
_FOUR_MILLION, _TEN_MILLION = 3997696, 9994240
"""Tokens of 488 and 1,220 steps of 8 x 1,024."""

Record = dict[str, Any]


def records(kind: str) -> list[Record]:
    """The records of one kind, in the order of the file."""
    file = KINDS if kind == "kinds" else RECORDS
    lines = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return [record for record in lines if record["kind"] == kind]


# ------------------------------------------------------------------------------------------------ tables


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def pair(record: Record) -> str:
    """The ratios on both texts."""
    return " / ".join("not measured" if value is None else f"{value:.4f}" for value in _both(record))


def _both(record: Record) -> list[float | None]:
    return [record["ratio"][text] for text in TEXTS]


def tokens(count: int) -> str:
    """Training tokens as one says them."""
    return f"{count / 1e6:.0f}M" if count else "none"


def ablation() -> str:
    """One line a variant of the start."""
    return table(
        ["start at 192 of 384 values", "Austen / Moby", "unseen part of the calibration text", "KL on it", "seconds"],
        (
            [r["name"], pair(r), f"{r['ratio']['own']:.4f}", f"{r['divergence']['own']:.3f}", f"{r['seconds']:.0f}"]
            for r in records("ablation")
        ),
    )


def controls() -> str:
    """Other starts at 192 values, and what the same short training makes of them."""
    found: dict[str, dict[int, Record]] = {}
    for record in records("control"):
        found.setdefault(record["name"], {})[record["tokens"]] = record
    columns = (0, _FOUR_MILLION, _TEN_MILLION)
    rows = ([name.replace("_", " "), *(pair(by[n]) if n in by else "" for n in columns)] for name, by in found.items())
    return table(["start", "no training", "after 4M tokens", "after 10M tokens"], rows)


def _models(**wanted: Any) -> list[Record]:
    """Models converted in all layers by the recipe; those of the comparison of attentions have one of their own."""
    return [
        record
        for record in records("model")
        if "bytes_at_1024" not in record and all(record[key] == value for key, value in wanted.items())
    ]


def sizes() -> str:
    """DBA by size, start and training tokens."""
    chosen = [r for r in _models(cache="full") if r["attention"].startswith("dba")]
    chosen.sort(key=lambda r: (-r["cached_values"], r.get("max_context", 1024), r["tokens"]))
    return table(
        ["cached values per layer", "start", "training tokens", "Austen / Moby"],
        (
            [
                f"{r['cached_values']}{r['attention'].removeprefix('dba')}",
                _start(r),
                tokens(r["tokens"]) + (f", {r['optimizer']}" if "optimizer" in r else ""),
                pair(r),
            ]
            for r in chosen
        ),
    )


def _start(record: Record) -> str:
    said = [record["start"]]
    if "max_context" in record:
        said.append(f"for {record['max_context']:,} tokens")
    if "calibration_tokens" in record:
        said.append(f"{record['calibration_tokens'] // 1024}k calibration tokens")
    if "allocation_step" in record:
        said.append(f"allocation step {record['allocation_step']:g}")
    return ", ".join(said)


def _named(record: Record) -> str:
    if record["attention"] == "gqa":
        return NAMES["gqa"]
    return ", ".join([NAMES[record["attention"]], str(record["cached_values"]), *_start(record).split(", ")[1:]])


def caches() -> str:
    """The teacher and DBA with caches in few bits."""
    chosen = [r for r in _models() if r["attention"] == "gqa" or (r["cache"] != "full" and r["start"] == "everything")]
    chosen.sort(key=lambda r: (-r["cache_bytes"], r["tokens"]))
    return table(
        ["model", "cache", "bytes per token", "training tokens", "Austen / Moby"],
        (
            [
                _named(r),
                r["cache"],
                f"{r['cache_bytes']:,}",
                tokens(r["tokens"]),
                pair(r),
            ]
            for r in chosen
        ),
    )


def attentions() -> str:
    """Four attentions at equal bytes, and in every second layer."""
    rows = []
    for name in ("dba", "mla", "sliding_window", "linear_attention"):
        here = [r for r in records("model") if r["attention"] == name and "bytes_at_1024" in r]
        whole = {r["tokens"]: r for r in here if r.get("layers") is None and r["start"] == "everything"}
        half = next(r for r in here if r.get("layers") is not None)
        rows.append([NAMES[name], *(pair(r) for r in (whole[0], whole[_FOUR_MILLION], half))])
    return table(["attention", "no training", "after 4M tokens", "in every second layer, no training"], rows)


def by_kinds() -> list[tuple[int, str, list[Record]]]:
    """Context, name and seeds of what was measured over kinds of text, by context and then by bytes, largest first."""
    seeds: dict[tuple[int, str], list[Record]] = {}
    for record in records("kinds"):
        seeds.setdefault((record["context"], record["name"]), []).append(record)
    found = [(*key, of) for key, of in seeds.items()]
    return sorted(found, key=lambda one: (one[0], -one[2][0]["cache_bytes"], one[1]))


def over_kinds() -> str:
    """Every way to a smaller cache over kinds of text: the mean, and the kind that loses most."""
    rows = []
    for context, name, seeds in by_kinds():
        worst = [max(_texts_of(one), key=lambda text: one["ratio"][text]) for one in seeds]
        means = [one["ratio"]["mean"] for one in seeds]
        spread = f" ({min(means):.4f} to {max(means):.4f}, {len(seeds)} seeds)" if len(seeds) > 1 else ""
        both = (geometric_mean(one["ratio"][text] for one in seeds) for text in TEXTS if text in seeds[0]["ratio"])
        rows.append(
            [
                f"{context:,}",
                name.replace("_", " "),
                f"{seeds[0]['cache_bytes']:,.0f}",
                f"{geometric_mean(means):.4f}{spread}",
                f"{geometric_mean(one['ratio']['worst'] for one in seeds):.4f} ({', '.join(dict.fromkeys(worst))})",
                " / ".join(f"{value:.4f}" for value in both),
                *(
                    f"{fmean(one[name]['mean'] for one in seeds):{digits}}" if name in seeds[0] else ""
                    for name, digits in (("kl", ".4f"), ("top1", ".3f"))
                ),
            ]
        )
    head = ["context", "cache", "bytes per token", "geometric mean", "worst kind", "Austen / Moby", "KL", "top-1"]
    return table(head, rows)


def _texts_of(record: Record) -> list[str]:
    return [text for text in record["ratio"] if text not in ("mean", "worst")]


TABLES = {
    "ablation": ablation,
    "controls": controls,
    "sizes": sizes,
    "caches": caches,
    "attentions": attentions,
    "kinds": over_kinds,
}


def refreshed(page: str) -> str:
    """The page with every table between its markers made anew."""
    for name, make in TABLES.items():
        head, opening, rest = page.partition(f"<!-- generated: {name} -->\n")
        assert opening, f"{PAGE} has no place for {name}"
        page = head + opening + make() + "\n" + rest[rest.index(END) :]
    return page


# ------------------------------------------------------------------------------------------------ pictures


def excess(record: Record) -> float | None:
    """Percent above the teacher, by the geometric mean of both texts; none where one of them was not measured."""
    first, second = _both(record)
    if first is None or second is None:
        return None
    return max(100 * ((first * second) ** 0.5 - 1), _FLOOR)


def draw() -> None:
    """All pictures, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({
        "svg.hashsalt": "caramba",
        "font.size": 11,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
    })  # fmt: skip
    PICTURES.mkdir(exist_ok=True)
    _against_bytes(PICTURES / "ratio_against_bytes.svg")
    _against_tokens(PICTURES / "ratio_against_tokens.svg")
    _over_kinds(PICTURES / "kinds_against_bytes.svg")


def _axes(title: str) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9.6, 5.4), layout="constrained")
    axes.set_title(title, loc="left", color=INK, fontsize=13)
    _percent(axes)
    return figure, axes


def _percent(axes: Any) -> None:
    """Percent above the teacher, from a tenth to four hundred, as the vertical axis."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_ylabel("perplexity above the teacher's, %")
    axes.set_yscale("log")
    axes.set_ylim(0.08, 400)
    axes.yaxis.set_major_locator(FixedLocator([_FLOOR, 0.3, 1, 3, 10, 30, 100, 300]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{'≤ ' if value == _FLOOR else ''}{value:g}"))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _line(
    axes: Any, points: list[tuple[float, float]], color: str, label: str, at: tuple[int, int, int], **style: Any
) -> None:
    """A line, and its name beside point ``at[0]``, ``at[1]`` points to the right and ``at[2]`` up."""
    points.sort()
    axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=6, linewidth=1.8, **style)
    axes.annotate(label, points[at[0]], xytext=at[1:], textcoords="offset points", color=color, va="center")


def _points(chosen: Iterable[Record], key: str) -> list[tuple[float, float]]:
    return [(float(r[key]), value) for r in chosen if (value := excess(r)) is not None]


def _least(chosen: Iterable[Record]) -> list[Record]:
    """Of records of one size and cache (optimizers, calibration, allocation) the one with the least ratio."""
    least: dict[Any, tuple[float, Record]] = {}
    for record in chosen:
        value, at = excess(record), (record["cached_values"], record["cache"])
        if value is not None and (at not in least or value < least[at][0]):
            least[at] = value, record
    return [record for _, record in least.values()]


def _against_bytes(path: Path) -> None:
    figure, axes = _axes("Perplexity against cached bytes, SmolLM2-135M, 1,024 tokens")
    whole = [r for r in _models(start="everything") if "max_context" not in r]
    for attention, trained, label, color, style, at in (
        ("dba", False, "DBA, no training, one size for all layers", ORANGE, ":", (0, 10, 6)),
        ("dba by layer", False, "no training, sizes by layer", ORANGE, "--", (0, -150, 0)),
        ("dba by layer", True, "10M tokens, sizes by layer", BLUE, "-", (0, -130, 13)),
    ):
        chosen = [r for r in whole if r["attention"] == attention and r["tokens"] == (_TEN_MILLION if trained else 0)]
        best = _least(chosen)
        _line(
            axes, _points((r for r in best if r["cache"] == "full"), "cache_bytes"), color, label, at, linestyle=style
        )
        for record in best:
            if record["cache"] != "full" and trained:
                _mark(axes, record, color, f"{record['cached_values']}, {record['cache']}", at=(-14, -13))
    for tokens_seen, label in (
        (90112000, "96, 90M tokens"),
        (29982720, "192, 30M tokens"),
        (19988480, "336, 20M tokens"),
    ):
        (record,) = (r for r in whole if r["tokens"] == tokens_seen and r["cache"] == "full")
        _mark(axes, record, GREEN, label)
    for name, at in (("mla", (30, 14)), ("sliding_window", (44, -12)), ("linear_attention", (48, 12))):
        (record,) = (
            r
            for r in records("model")
            if (r["attention"], r["tokens"], r["start"]) == (name, _FOUR_MILLION, "everything")
        )
        _mark(axes, record, MUTED, f"{NAMES[name]}, 4M", at=at)
    teacher = _points((r for r in records("model") if r["attention"] == "gqa"), "cache_bytes")
    _line(axes, teacher, INK, "teacher: int4, int8, bf16", (-1, -150, 14), linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks([3394, 3763, 5760, 6642, 7200, 11520, 12960, 20160, 23040], minor=False)
    axes.set_xticklabels(["3,394", "", "5,760", "", "7,200", "11,520", "", "", "23,040"])
    axes.xaxis.set_minor_formatter("")
    axes.set_xlim(3000, 36000)
    axes.set_xlabel("cached bytes a token, all layers")
    figure.savefig(path, metadata={"Date": None})


def _mark(axes: Any, record: Record, color: str, label: str, at: tuple[int, int] = (0, -13)) -> None:
    value = excess(record)
    axes.plot([record["cache_bytes"]], [value], color=color, marker="D", markersize=6, linestyle="none")
    axes.annotate(
        label,
        (record["cache_bytes"], value),
        xytext=at,
        textcoords="offset points",
        color=color,
        ha="center",
        fontsize=9,
    )


def _against_tokens(path: Path) -> None:
    figure, axes = _axes("Perplexity against training tokens, SmolLM2-135M, 1,024 tokens")
    full = [r for r in _models(cache="full", start="everything") if "max_context" not in r]
    for values, attention, color, up, style, label in (
        (96, "dba", ORANGE, 7, ":", "96 (4x)"),
        (96, "dba by layer", ORANGE, 0, "-", "96, sizes by layer"),
        (192, "dba", BLUE, 7, ":", "192 (2x)"),
        (192, "dba by layer", BLUE, 0, "-", "192, sizes by layer"),
        (336, "dba", GREEN, 0, "-", "336 (1.14x)"),
    ):
        least: dict[int, Record] = {}
        for r in full:
            if (r["attention"], r["cached_values"]) == (attention, values):
                least[r["tokens"]] = min((least.get(r["tokens"], r), r), key=lambda r: excess(r) or 0.0)
        points = [(t / 1e6, y) for t, y in _points(least.values(), "tokens")]
        _line(axes, points, color, label, (-1, 8, up), linestyle=style)
    axes.set_xlim(-2, 112)
    axes.set_xlabel("training tokens, millions")
    figure.savefig(path, metadata={"Date": None})


_FAMILIES = {
    "dba+windows": ("windows in 20 layers, DBA in 10, 10M tokens", BLUE),
    "dba": ("DBA, 10M tokens", "#56b4e9"),
    "int4_128": ("teacher in 4 bits, its last tokens in full", MUTED),
    "int": ("teacher in 8 and 4 bits", INK),
    "window": ("teacher with windows and sinks", GREEN),
    "observed": ("eviction by attention", "#cc79a7"),
    "snapkv": ("SnapKV", "#8c6bb1"),
    "knorm": ("eviction by norms", "#882255"),
    "kivi": ("KIVI", "#e69f00"),
    "transmla": ("TransMLA's start", ORANGE),
    "mla": ("MLA", "#a6761d"),
    "linear": ("linear attention", "#999933"),
    "teacher": ("teacher, distilled with a rounded cache", "#444444"),
}
"""What begins a name, in the order of the legend, with label and color; longer beginnings first."""

_LEAST_RATIO, _MOST_RATIO = 0.975, 1.225


def _over_kinds(path: Path) -> None:
    """One panel a context: the geometric mean over kinds, and a thin line up to the kind that loses most."""
    from matplotlib import pyplot

    found = [one for one in by_kinds() if one[0] >= 1024]  # shorter ones are of a single window each
    contexts = sorted({context for context, _, _ in found})
    figure, panels = pyplot.subplots(1, len(contexts), figsize=(13.5, 5.4), layout="constrained", sharey=True)
    drawn: dict[str, Any] = {}
    for axes, context in zip(panels, contexts, strict=True):
        axes.set_title(f"{context:,} tokens", loc="left", color=INK)
        for family, (label, color) in _FAMILIES.items():
            here = [seeds for at, name, seeds in found if at == context and _family(name) == family]
            points = []
            for seeds in here:
                size = seeds[0]["cache_bytes"]
                mean, worst = (geometric_mean(one["ratio"][of] for one in seeds) for of in ("mean", "worst"))
                axes.plot([size, size], [mean, worst], color=color, linewidth=1.0, alpha=0.5)
                if mean > _MOST_RATIO:
                    axes.annotate(f"{mean:.2f}", (size, _MOST_RATIO), ha="center", va="top", color=color, fontsize=9)
                points.append((size, mean))
            if points:
                (drawn[label],) = axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=5)
        axes.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=":")
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xscale("log")
        axes.set_xticks(ticks := [2880, 5760, 11520, 23040], minor=False)
        axes.set_xticklabels([f"{tick:,}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlim(2600, 25600)
        axes.set_ylim(_LEAST_RATIO, _MOST_RATIO)
        axes.set_xlabel("cached bytes per token, as stored")
    panels[0].set_ylabel("perplexity over the teacher's: mean of kinds, up to the worst")
    figure.legend([drawn[one] for one in drawn], list(drawn), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def _family(name: str) -> str:
    family = next((family for family in _FAMILIES if name.startswith(family)), None)
    assert family is not None, f"{name} begins with none of {', '.join(_FAMILIES)}"
    return family


def main() -> None:
    """Write, or say what is out of date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    page = PAGE.read_text(encoding="utf-8")
    if parser.parse_args().check:
        sys.exit(None if refreshed(page) == page else f"{PAGE} is out of date: python {sys.argv[0]}")
    PAGE.write_text(refreshed(page), encoding="utf-8")
    draw()


if __name__ == "__main__":
    main()
