"""Links, paths and names of modules on the pages lead somewhere."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT

TEXTS = {page: re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S) for page in PAGES}
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)", TEXTS[page], re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page if not name else (page.parent / name).resolve()
        assert file.exists(), target
        if anchor and file in TEXTS:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_are_there(page: Path) -> None:
    """What begins as a file or folder of the repository does is one: of the whole, or beside the page."""
    for name in re.findall(r"`([\w.-]+(?:/[\w.*-]+)*/?)`", TEXTS[page]):
        path = name.rstrip("/")
        known = (ROOT / path.split("/")[0]).exists() or path.startswith(("caramba_", "plugins/"))
        if "/" in name and known and not re.search(r"[A-Z]{4}|\*", path) and not path.startswith("runs"):
            assert (ROOT / path).exists() or (page.parent / path).exists(), name


@pytest.mark.parametrize(
    "page", [page for page in PAGES if (page.parent / "src").is_dir()], ids=lambda page: page.parent.name
)
def test_files_of_a_distribution_are_there(page: Path) -> None:
    names = {file.name for file in page.parent.glob("src/**/*.py")}
    assert {name for name in re.findall(r"`(\w+\.py)`", TEXTS[page]) if name not in names} == set()


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_modules_are_there(page: Path) -> None:
    for dotted in set(re.findall(r"`(caramba(?:_\w+)?(?:\.\w+)+)`", TEXTS[page])):
        if dotted.startswith("caramba.") and dotted.split(".")[1] in ("api", "catalogue"):
            continue
        module = dotted
        names: list[str] = []
        while True:
            try:
                found: object = import_module(module)
                break
            except ModuleNotFoundError as error:
                assert module.startswith(str(error.name)) and "." in module, dotted
                module, _, name = module.rpartition(".")
                names.insert(0, name)
        if module == "caramba" and names and not hasattr(found, names[0]):
            continue  # an entry-point group such as caramba.attention
        for name in names:
            found = getattr(found, name)
