"""Random mutations of the presets: what comes back is a manifest or a report, never a traceback.

``CARAMBA_FUZZ=5000`` sets the number of cases.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from caramba_document.writing import dump
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caramba_core.errors import ManifestError
from caramba_core.manifest.load import Loaded, load_manifest

from .mutants import PRESETS, keys, leaves, preset_text

CASES = int(os.environ.get("CARAMBA_FUZZ", "300"))
TEXTS = [preset_text(name) for name in PRESETS]
LEAVES = {text: leaves(text) for text in TEXTS}
KEYS = {text: keys(text) for text in TEXTS}

SNIPPETS = (
    *"{}[]:,-#&*!|>'\"%@`~?$\\\t\n ",
    *(
        "${",
        "}",
        "${n_layers}",
        "${d_model // 2}",
        "$${",
        "<<: *a",
        "&a ",
        "*a",
        "!!python/name:os.system",
        "---\n",
        "...\n",
    ),
    *("null", "true", "no", "1e400", "-1", "0", "2.5", ".nan", "0x1F", "9" * 30, "[]", "{}", "[1, 2]", "{a: 1}", "'x'"),
    *("type: dba", "extends: x2", "include: m.yml", "extends: m.yml", "matrix: {v_dim: [1, 2]}", "vars: {sem_dim: 0}"),
    *("\x00", "\x85", "\u2028", "\ufeff", "\U0001f600", "é", "\x1b[31m", "\r"),
)
VALUES = st.one_of(
    st.sampled_from(SNIPPETS),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-5, 2**70), st.floats(), st.text(max_size=4)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
        max_leaves=5,
    ).map(json.dumps),
)


@st.composite
def spoilt(draw: st.DrawFn) -> str:
    """A preset after one to four mutations."""
    text = draw(st.sampled_from(TEXTS))
    original = text
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("leaf", "leaf", "key", "cut", "insert", "double", "swap", "indent")))
        lines = text.split("\n")
        row = draw(st.integers(0, len(lines) - 1))
        at = draw(st.integers(0, len(text)))
        if kind in ("leaf", "key"):
            if text == original:  # offsets are the original's
                word = draw(st.sampled_from((LEAVES if kind == "leaf" else KEYS)[original]))
                text = word.replaced(text, draw(VALUES))
        elif kind == "cut":
            text = text[:at] + text[at + draw(st.integers(1, 30)) :]
        elif kind == "insert":
            text = text[:at] + draw(VALUES) + text[at:]
        elif kind == "double":
            text = "\n".join([*lines[:row], lines[row], *lines[row:]])
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[row], lines[other] = lines[other], lines[row]
            text = "\n".join(lines)
        else:
            lines[row] = " " * draw(st.integers(0, 12)) + lines[row].lstrip()
            text = "\n".join(lines)
    return text


def outcome(file: Path, overrides: tuple[str, ...] = ()) -> Loaded | None:
    """The manifest, or ``None`` where there is a sound report."""
    try:
        return load_manifest(file, overrides=overrides)
    except ManifestError as error:
        assert error.problems
        for problem in error.problems:
            assert problem.message
            assert problem.render()
            json.dumps(problem.to_dict())
        assert all(line.isprintable() and len(line) < 700 for line in str(error).split("\n"))
        return None


FEW_CHECKS = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


@pytest.mark.slow
@settings(max_examples=CASES, deadline=None, suppress_health_check=FEW_CHECKS)
@given(text=spoilt())
def test_mutated_presets(tmp_path: Path, text: str) -> None:
    file = tmp_path / "m.yml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    loaded = outcome(file)
    if loaded is not None:
        file.write_text(dump(loaded.document), encoding="utf-8")
        assert load_manifest(file).manifest == loaded.manifest


@settings(max_examples=CASES // 3, deadline=None, suppress_health_check=FEW_CHECKS)
@given(text=st.sampled_from(TEXTS), data=st.data())
def test_mutated_json(tmp_path: Path, text: str, data: st.DataObject) -> None:
    (tmp_path / "m.yml").write_text(text, encoding="utf-8")
    plain = json.dumps(load_manifest(tmp_path / "m.yml").document, indent=1)
    at = data.draw(st.integers(0, len(plain)))
    plain = plain[:at] + data.draw(VALUES) + plain[at + data.draw(st.integers(0, 12)) :]
    (tmp_path / "m.json").write_bytes(plain.encode("utf-8", "surrogatepass"))
    outcome(tmp_path / "m.json")


@settings(max_examples=CASES // 3, deadline=None, suppress_health_check=FEW_CHECKS)
@given(text=st.sampled_from(TEXTS), data=st.data())
def test_mutated_command_lines(tmp_path: Path, text: str, data: st.DataObject) -> None:
    (tmp_path / "m.yml").write_text(text, encoding="utf-8")
    leaf = data.draw(st.sampled_from(LEAVES[text]))
    path = [str(part) for part in leaf.path]
    path = data.draw(
        st.one_of(st.just(path), st.just(path[:-1]), st.permutations(path), st.lists(st.text(max_size=5), max_size=3))
    )
    outcome(tmp_path / "m.yml", (f"{'.'.join(path)}={data.draw(VALUES)}",))


@settings(max_examples=CASES // 3, deadline=None, suppress_health_check=FEW_CHECKS)
@given(content=st.binary(max_size=200))
@pytest.mark.parametrize("name", ["m.yml", "m.json"])
def test_any_bytes(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert outcome(tmp_path / name) is None
