"""The changelog keeps its form: sections by what a user sees, one line for each change, in order."""

from __future__ import annotations

import re

from tests.docs.blocks import ROOT

SECTIONS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def test_the_form_of_the_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    for release in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        found = re.findall(r"^### (\w+)\n\n((?:- .*\n)+)", release, re.MULTILINE)
        assert [name for name, _ in found] == [name for name in SECTIONS if f"### {name}\n" in release]
        for _, lines in found:
            plain = [re.sub(r"[^a-z0-9: ]", "", line.lower()) for line in lines.splitlines()]
            assert plain == sorted(plain)
