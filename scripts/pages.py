"""The generated parts of the pages, and the outputs of the notebook.

python scripts/pages.py              # says which pages are stale
python scripts/pages.py --write      # brings them up to date
python scripts/pages.py --notebook   # runs the notebook and keeps what it shows
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Final

from caramba_plugins_tools.explain import explain_entry
from caramba_plugins_tools.fields import INCLUDE, Field, doc_text, fields_of
from caramba_plugins_tools.fields import sections as manifest_sections

from caramba_core import hookspecs
from caramba_core.kinds import KINDS
from caramba_core.plugins.loading import required_methods
from caramba_core.plugins.registry import registry
from scripts import public_names

__all__ = ["DOCS", "NOTEBOOK", "PAGES", "refreshed", "table"]

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
NOTEBOOK: Final = DOCS / "notebooks" / "first_steps.ipynb"

GIVES: Final = {
    "preset": "a `pathlib.Path`",
    "command": "a function or a `typer.Typer`",
    "completer": "a function `(parameters, begun)` that gives texts",
}


# ------------------------------------------------------------------------------------------------ plugins.md


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
                words = re.split(r"[.;,]\s", inspect.getdoc(base) or "")[0].rstrip(".").replace("``", "`")
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


# ------------------------------------------------------------------------------------------------ manifest.md


def sections() -> str:
    """A table of the keys of each part of a manifest, those of modes with settings of their own among them."""
    parts = [_section(name, doc_text(cls), fields_of(cls)) for name, cls in manifest_sections(registry()).items()]
    explained = (explain_entry(registry(), entry) for entry in registry().entries("mode"))
    parts += [_section(f"mode: {one.name}", one.text, one.fields) for one in explained if one.fields]
    return "\n\n".join(parts)


def everywhere() -> str:
    """The key that every mapping may have."""
    return table([INCLUDE])


def components() -> str:
    """The installed components of each kind that a manifest names, with a line about each."""
    rows = ["| kind | type | is |", "|---|---|---|"]
    for kind in registry().kinds:
        for entry in registry().entries(kind):
            one = explain_entry(registry(), entry)
            if one.fields or kind == "mode":
                summary = _cell(one.text.partition("\n")[0])
                rows.append(f"| {kind} | `{entry.name}` | {summary} |")
    return "\n".join(rows)


def _section(name: str, text: str, fields: Iterable[Field]) -> str:
    return f"### {name}\n\n{text}\n\n{table(fields)}"


def table(fields: Iterable[Field], page: str = "") -> str:
    """A row a key; types lead to their sections on ``page``, this one if not given."""
    rows = ["| key | type | default | range | meaning |", "|---|---|---|---|---|"]
    for field in fields:
        given = f"`{field.default}`" if field.default else ""
        default = "required" if field.required else "its own" if "(" in given else given
        type_ = " | ".join(_linked(word, page) for word in field.type.split(" | "))
        cells = (f"`{field.name}`", type_, default, field.range, field.described)
        rows.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(rows)


def _linked(word: str, page: str) -> str:
    """A type's word, which leads to the section that it names."""
    name = word.removeprefix("list of ")
    return word.replace(name, f"[{name}]({page}#{name})") if name in manifest_sections(registry()) else word


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ------------------------------------------------------------------------------------------------ measurements/index.md


def records() -> str:
    """One row a record, the newest first: its date and its title."""
    rows = ["| date | record |", "|---|---|"]
    pages = sorted((DOCS / "measurements").glob("2*.md"))
    for page in sorted(pages, key=lambda page: page.name[:10], reverse=True):
        date, title = page.name[:10], page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        rows.append(f"| {date} | [{re.sub(rf',? [(]?{date}[)]?', '', title)}]({page.name}) |")
    return "\n".join(rows)


def benches() -> str:
    """One row a command under ``bench/``, with the first sentence of what it says of itself."""
    rows = ["| command | measures |", "|---|---|"]
    for file in sorted((DOCS.parent / "bench").glob("*.py")):
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        rows.append(f"| `python bench/{file.name}` | {_cell(said.partition(chr(10))[0].replace('``', '`'))} |")
    return "\n".join(rows)


# ------------------------------------------------------------------------------------------------ all pages


PAGES: Final[dict[Path, dict[str, Callable[[], str]]]] = {
    DOCS / "plugins.md": {"kinds": kinds, "hooks": hooks, "checks": checks, "attentions": attentions},
    DOCS / "manifest.md": {"sections": sections, "everywhere": everywhere, "components": components},
    DOCS / "measurements" / "index.md": {"records": records, "benches": benches},
    public_names.PAGE: {},
}
"""The generated parts of each page, by the name in the comments around them."""


def refreshed(page: Path) -> str:
    """A page's text with its generated parts made again."""
    text = page.read_text(encoding="utf-8")
    for name, make in PAGES[page].items():
        begin, end = f"<!-- begin generated: {name} -->", f"<!-- end generated: {name} -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        assert rest, f"{page.name} has no place for {name}"
        text = f"{before}{begin}\n\n{make()}\n\n{end}{after}"
    return public_names.refreshed(text) if page == public_names.PAGE else text


def _stale() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        text = refreshed(page)
        if text != page.read_text(encoding="utf-8"):
            yield page, text


def _run_notebook() -> None:
    """Run the notebook where it lies; outputs are kept, without times and widgets."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, coalesce_streams=True, record_timing=False, resources=place).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of whoever ran it
    nbformat.write(notebook, NOTEBOOK)


def main(arguments: list[str]) -> int:
    """Say which pages are stale, or bring them up to date."""
    if "--notebook" in arguments:
        _run_notebook()
        return 0
    stale = list(_stale())
    for page, text in stale:
        if "--write" in arguments:
            page.write_text(text, encoding="utf-8")
        print(f"{page.relative_to(DOCS.parent)}: {'written' if '--write' in arguments else 'stale'}")
    return 1 if stale and "--write" not in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
