"""For every leaf of every preset: break it, and its line and column are reported, wherever its value ends up."""

from __future__ import annotations

from pathlib import Path

from caramba_document.problem import ManifestProblem, dotted

from caramba_core.errors import ManifestError
from caramba_core.manifest.load import load_manifest

from .mutants import each_preset, leaves, preset_text

WRONG = "{wrong: [kind]}"
"""A value that no field of a preset takes."""


def problems(file: Path, *overrides: str) -> tuple[ManifestProblem, ...]:
    try:
        load_manifest(file, overrides=overrides)
    except ManifestError as error:
        return error.problems
    return ()


def places(file: Path, *overrides: str) -> set[tuple[str, int | None, int | None]]:
    return {(Path(p.file).name, p.line, p.column) for p in problems(file, *overrides)}


@each_preset
def test_a_broken_leaf_is_reported_where_it_stands(name: str, tmp_path: Path) -> None:
    text = preset_text(name)
    for leaf in leaves(text):
        (tmp_path / "m.yml").write_text(leaf.replaced(text, WRONG), encoding="utf-8")
        assert places(tmp_path / "m.yml") == {("m.yml", leaf.line, leaf.column)}, dotted(leaf.path)


@each_preset
def test_also_behind_extends(name: str, tmp_path: Path) -> None:
    text = preset_text(name)
    (tmp_path / "m.yml").write_text("extends: base.yml\n", encoding="utf-8")
    for leaf in leaves(text):
        (tmp_path / "base.yml").write_text(leaf.replaced(text, WRONG), encoding="utf-8")
        found = problems(tmp_path / "m.yml")
        at = {(Path(p.file).name, p.line, p.column) for p in found}
        assert at == {("base.yml", leaf.line, leaf.column)}, dotted(leaf.path)
        assert all(any(note.startswith("extended at") for note in p.notes) for p in found)


@each_preset
def test_also_behind_crlf_line_ends_and_a_byte_order_mark(name: str, tmp_path: Path) -> None:
    text = preset_text(name)
    for leaf in leaves(text)[::7]:
        spoilt = leaf.replaced(text, WRONG).replace("\n", "\r\n")
        (tmp_path / "m.yml").write_bytes(b"\xef\xbb\xbf" + spoilt.encode())
        assert places(tmp_path / "m.yml") == {("m.yml", leaf.line, leaf.column)}


@each_preset
def test_a_value_from_the_command_line_is_reported_as_such(name: str, tmp_path: Path) -> None:
    text = preset_text(name)
    (tmp_path / "m.yml").write_text(text, encoding="utf-8")
    for leaf in leaves(text):
        if (
            leaf.path[0] == "requires"
            or leaf.path[-1] == "extends"
            or (leaf.path[0] == "groups" and "vars" in leaf.path)
        ):
            continue  # these say what the tree is made of, and are gone when a --set reaches it
        override = f"{dotted(leaf.path)}={WRONG}"
        assert {p.file for p in problems(tmp_path / "m.yml", override)} == {f"--set {override}"}
