"""The generated tables of ``docs/plugins.md``.

python bench/plugins_docs.py           # says whether they are up to date
python bench/plugins_docs.py --write   # brings them up to date
"""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

from caramba_core import hookspecs
from caramba_core.kinds import KINDS
from caramba_core.plugins.loading import required_methods
from caramba_core.plugins.registry import registry

__all__ = ["PAGE", "generated", "refreshed"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "plugins.md"

GIVES = {
    "preset": "a `pathlib.Path`",
    "command": "a function or a `typer.Typer`",
    "tokenizer": "reserved: tokenizers come with a checkpoint's loader",
    "metric": "reserved: nothing reads it yet",
    "benchmark": "reserved: nothing reads it yet",
}


def kinds() -> str:
    """One row a kind."""
    rows = ["| kind | entry-point group | is | the entry names |", "|---|---|---|---|"]
    for kind in registry().kinds.values():
        gives, named = kind.gives, GIVES.get(kind.name, "")
        if kind.contract is not None:
            module, _, name = kind.contract.partition(":")
            base = getattr(import_module(module), name)
            methods = ", ".join(f"`{method}`" for method in required_methods(base))
            named = f"a class {'like' if methods else 'derived from'} `{module}.{name}`"
            named += f": {methods}" if methods else ""
            if kind.name not in KINDS:
                words = re.split(r"[.;,] |\\.$", inspect.getdoc(base) or "")[0].rstrip(".")
                gives = f"{words[0].lower()}{words[1:]}; declared by `{module.partition('.')[0]}`"
        rows.append(f"| {kind.name} | `{kind.group}` | {gives} | {named} |")
    return "\n".join(rows)


def hooks() -> str:
    """One entry a hook: signature, where it runs, what a fault does, and its own words."""
    parts = []
    for name, function in vars(hookspecs).items():
        if not hasattr(function, "caramba_spec"):
            continue
        arguments = ", ".join(inspect.signature(function).parameters)
        fault = "is reported, and the run goes on" if name in hookspecs.OBSERVERS else "ends the command"
        words = re.sub(r":class:`~?([\w.]+\.)?(\w+)`", r"`\2`", inspect.getdoc(function) or "").replace("``", "`")
        parts.append(f"### `{name}({arguments})`\n\n*A fault in it {fault}.* {words}")
    return "\n\n".join(parts)


def checks() -> str:
    """One row a check."""
    from caramba_plugins_testing.checks import CHECKS

    rows = [f"| `{check.name}` | {check.summary} |" for check in CHECKS.values()]
    return "\n".join(["| check | holds where |", "|---|---|", *rows])


def attentions() -> str:
    """What each shipped attention passes; ``tests/plugins/test_kit_on_shipped.py`` runs all of it."""
    from caramba_plugins_testing.checks import CHECKS

    from tests.plugins.attentions import CASES

    types = list(dict.fromkeys(case.name.split()[0] for case in CASES))
    rows = [f"| check | {' | '.join(types)} |", "|---|" + ":-:|" * len(types)]
    for check in CHECKS.values():
        cells = []
        for type_ in types:
            cases = [case for case in CASES if case.name.split()[0] == type_]
            cells.append("●" if any(check.applies(case) for case in cases) else "·")
        if "●" in cells:
            rows.append(f"| `{check.name}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def generated() -> dict[str, str]:
    """Every generated part by its name."""
    return {"kinds": kinds(), "hooks": hooks(), "checks": checks(), "attentions": attentions()}


def refreshed(page: str) -> str:
    """The page with its generated parts made anew."""
    for name, text in generated().items():
        begin, end = f"<!-- begin generated: {name} -->", f"<!-- end generated: {name} -->"
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        assert rest, f"the page has no place for {name}"
        page = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    new = refreshed(old)
    if "--write" in sys.argv:
        PAGE.write_text(new, encoding="utf-8")
    print("up to date" if old == new else "written" if "--write" in sys.argv else "stale: run again with --write")
    sys.exit(0 if old == new or "--write" in sys.argv else 1)
