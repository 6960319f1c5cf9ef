"""A key that is misspelt by one character: the report names the right one first.

Every sixth misspelling is tried; ``CARAMBA_THOROUGH=1`` tries them all.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from caramba_document.problem import ManifestProblem
from caramba_document.suggestions import nearest

from caramba_core.errors import ManifestError
from caramba_core.manifest.load import load_manifest

from .mutants import Written, each_preset, keys, leaves, preset_text, typos

SUGGESTED = re.compile(r"did you mean (.*)\?")
STEP = 1 if os.environ.get("CARAMBA_THOROUGH") else 6
NAMES = ("type", "strategy", "mode", "dtype", "device", "extends")


def problems(file: Path) -> tuple[ManifestProblem, ...]:
    try:
        load_manifest(file)
    except ManifestError as error:
        return error.problems
    return ()


def check(problem: ManifestProblem, typo: str, right: str) -> None:
    """The right name comes first, unless the letter that tells it from another name is the misspelt one."""
    found = SUGGESTED.search(problem.message)
    suggested = [] if found is None else re.findall(r"'([^']+)'", found[1])
    assert right in suggested, f"{right} as {typo!r}: {problem.render()}"
    before = suggested[: suggested.index(right)]
    assert all(one_letter_apart(right, other) or one_letter_apart(typo, other) for other in before), (
        f"{right} as {typo!r}: {problem.render()}"
    )


def one_letter_apart(a: str, b: str) -> bool:
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1


def unlike(written: list[Written]) -> list[Written]:
    """One of each key: where the names on the way to it are the same, so is the config that has it."""
    return list({(w.path[:1], *(part for part in w.path if isinstance(part, str))): w for w in written}.values())


@each_preset
def test_a_misspelt_key(name: str, tmp_path: Path) -> None:
    text = preset_text(name)
    written = keys(text)
    for index, key in enumerate(unlike(written)):
        siblings = {str(other.path[-1]) for other in written if other.path[:-1] == key.path[:-1]}
        for typo in typos(key.value)[index % STEP :: STEP]:
            if typo in siblings:
                continue  # a duplicate key, not a misspelt one
            (tmp_path / "m.yml").write_text(key.replaced(text, typo), encoding="utf-8")
            found = problems(tmp_path / "m.yml")
            assert found, f"{key.path} as {typo!r} passes"
            if key.path[0] == "vars":
                assert any(repr(key.value) in problem.message for problem in found), f"{key.path} as {typo!r}: {found}"
                continue
            (problem,) = found
            assert (problem.line, problem.column) == (key.line, key.column)
            check(problem, typo, key.value)


@each_preset
def test_a_misspelt_component_mode_or_group(name: str, tmp_path: Path) -> None:
    text = preset_text(name)
    chosen = {(leaf.path[-1], leaf.value): leaf for leaf in leaves(text) if leaf.path[-1] in NAMES}
    for index, leaf in enumerate(chosen.values()):
        for typo in typos(leaf.value)[index % STEP :: STEP]:
            if typo.isdecimal():
                continue  # no string any more
            (tmp_path / "m.yml").write_text(leaf.replaced(text, typo), encoding="utf-8")
            found = [p for p in problems(tmp_path / "m.yml") if (p.line, p.column) == (leaf.line, leaf.column)]
            if found:  # else it is another name
                check(found[0], typo, leaf.value)


def test_what_is_near() -> None:
    known = ("n_heads", "n_kv_heads", "head_dim", "d_model", "lr", "eps")
    assert nearest("n_head", known)[0] == "n_heads"
    assert nearest("nHeads", known)[0] == "n_heads"
    assert nearest("N-KV-Heads", known)[0] == "n_kv_heads"
    assert nearest("hidden_size", known) == ("d_model",)
    assert nearest("rl", known) == ("lr",)
    assert nearest("colour", known) == ()
    assert nearest("x", known) == ()
    assert nearest("x_bias", ("k_bias", "q_bias"), preferred=["q_bias"])[0] == "q_bias"
