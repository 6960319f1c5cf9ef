"""What the site has beside the pages of ``docs/``: a hook of mkdocs, which ``mkdocs.yml`` names.

- README, ARCHITECTURE, CONTRIBUTING and CHANGELOG of the repository, as pages;
- the notebook with the outputs that it keeps;
- every component with its fields, and what every command says of itself with ``--help``;
- one page of docstrings for each section of ``docs/public.md``.

Links are written for the repository.  Those to pages of the site lead there; those to other files of the repository
become plain text, and what leads nowhere stays, so that the build fails.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path, PurePosixPath
from typing import Final

import nbformat
import typer
from caramba_plugins_tools.explain import explain_entry
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from caramba_core.cli import COMMANDS, main
from caramba_core.plugins.registry import registry
from scripts.pages import table

__all__ = [
    "commands_page",
    "components_page",
    "notebook_page",
    "on_config",
    "on_files",
    "on_page_markdown",
    "on_post_build",
    "reference_pages",
    "relinked",
]

ROOT: Final = Path(__file__).resolve().parents[1]
NOTEBOOK: Final = "docs/notebooks/first_steps.ipynb"

PLACES: Final = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    NOTEBOOK: "notebooks/first_steps.md",
}
"""Files of the repository that are pages of the site, beside those in ``docs/``."""

_LINK: Final = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_ROW: Final = re.compile(r"^\| `([\w.]+)` \| ([^|]+) \| ([^|]*) \|$")
_OUTSIDE: Final = {
    ".html": re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?https?:[^>]*>"),
    ".css": re.compile(r"(?:url\(|@import)\s*[\"']?https?:[^)]*"),
}
_COMPONENT: Final = re.compile(r"^\| (\w+) \| `([\w.]+)` \|", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the folders of all packages, and the pages of docstrings in the navigation."""
    sources = [ROOT, *sorted(ROOT.glob("*/src")), *sorted(ROOT.glob("plugins/*/src"))]
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(source) for source in sources]
    (python,) = (item["Python"] for item in config.nav or () if "Python" in item)
    (section,) = (item for item in python if "Docstrings" in item)
    section["Docstrings"] = [{text.partition("\n")[0][2:]: place} for place, text in reference_pages().items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in ``docs/``."""
    for source, place in PLACES.items():
        text = notebook_page() if source == NOTEBOOK else (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    for place, text in {
        "components.md": components_page(),
        "commands.md": commands_page(),
        **reference_pages(),
    }.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links of the repository links of the site."""
    places = {place: source for source, place in PLACES.items()}
    here = page.file.src_uri
    if here == "public.md":
        markdown = "\n".join(_ROW.sub(_linked_row, line) for line in markdown.split("\n"))
    if here == "manifest.md":
        markdown = _COMPONENT.sub(_linked_component, markdown)
    return relinked(markdown, places.get(here, f"docs/{here}"), here)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that asks somebody else for anything when it is read."""
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in _OUTSIDE and (found := _OUTSIDE[file.suffix].search(file.read_text(encoding="utf-8"))):
            raise PluginError(f"{file} asks for something outside of the site: {found[0]}")


def relinked(markdown: str, source: str, place: str) -> str:
    """The text of a page that is the file ``source`` of the repository and stands at ``place`` of the site."""

    def link(found: re.Match[str]) -> str:
        text, (target, hash_, anchor) = found[1], found[2].partition("#")
        if not target or ":" in target:
            return found[0]
        file = os.path.normpath(PurePosixPath(source).parent / target)
        if (ROOT / file).is_dir() and (ROOT / file / "index.md").is_file():
            file += "/index.md"
        leads_to = PLACES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if leads_to is not None and not (ROOT / file).is_dir():
            there = os.path.relpath(leads_to, PurePosixPath(place).parent)
            return f"[{text}]({there}{hash_}{anchor})"
        return text if (ROOT / file).exists() else found[0]

    parts = _FENCE.split(markdown)
    return "".join(part if number % 2 else _LINK.sub(link, part) for number, part in enumerate(parts))


def notebook_page() -> str:
    """The notebook as Markdown: texts, code, and what each cell shows as text."""
    parts = []
    for cell in nbformat.read(ROOT / NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        shown = [output.get("text") or output["data"]["text/plain"] for output in cell.outputs]
        parts += [f"```text\n{text.rstrip()}\n```" for text in shown]
    return "\n\n".join(parts) + "\n"


def components_page() -> str:
    """What ``caramba explain`` says of every component that a manifest names: a section each."""
    known = registry()
    parts = ["# Components", "The same as `caramba explain NAME`, for every component that a manifest may name."]
    for kind in known.kinds:
        explained = [explain_entry(known, entry) for entry in known.entries(kind) if kind != "mode"]
        if any(one.fields for one in explained):
            parts.append(f"## {kind}")
        for one in explained:
            if one.fields:
                text = re.sub(r"``(.+?)``", r"`\1`", one.text)
                parts.append(f"### {one.name} {{ #{_anchor(kind, one.name)} }}")
                parts += [f"*{kind} of {one.distribution}*", text, table(one.fields, "manifest.md")]
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """``--help`` of every command."""
    parts = ["# Commands", "What every command says of itself with `--help`. `python -m caramba` is the same program."]
    parts += [f"## caramba {' '.join(words)}\n\n```text\n{_help(words)}\n```" for words in sorted(_commands())]
    return "\n\n".join(parts) + "\n"


def _commands() -> set[tuple[str, ...]]:
    found = {tuple(name.split(".")) for name in COMMANDS}
    for entry in registry().entries("command"):
        words, loaded = tuple(entry.name.split(".")), registry().load(entry)
        if isinstance(loaded, typer.Typer):
            group = typer.main.get_command(loaded)
            found |= {(*words, name) for name in getattr(group, "commands", {})} or {words}
        else:
            found.add(words)
    return found


def _help(words: tuple[str, ...]) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return "\n".join(line.rstrip() for line in said.getvalue().strip("\n").splitlines())


def reference_pages() -> dict[str, str]:
    """The docstrings of all public names: a page for each section of ``docs/public.md``."""
    pages: dict[str, str] = {}
    distribution = section = ""
    for line in (ROOT / "docs" / "public.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            distribution = section = line[3:]
        elif line.startswith("### "):
            section = f"{distribution}, {line[4].lower()}{line[5:]}"
        elif row := _ROW.match(line):
            place = f"api/{re.sub(r'[^a-z]+', '-', section.lower())}.md"
            head = f"# {section}\n\nGenerated from the docstrings of its [public names](../public.md).\n"
            pages[place] = pages.get(place, head) + _module(row[1], re.findall(r"`(\w+)`", row[3]))
    return pages


def _module(module: str, names: list[str]) -> str:
    members = ", ".join(name for name in names if name != "__version__")
    return f"\n::: {module}\n    options:\n      members: [{members}]\n"


def _linked_row(row: re.Match[str]) -> str:
    return row[0].replace(f"`{row[1]}`", f"[`{row[1]}`][{row[1]}]", 1)


def _linked_component(row: re.Match[str]) -> str:
    return row[0] if row[1] == "mode" else f"| {row[1]} | [`{row[2]}`](components.md#{_anchor(row[1], row[2])}) |"


def _anchor(kind: str, name: str) -> str:
    return f"{kind}-{name.replace('.', '-')}"
