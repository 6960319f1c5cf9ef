"""``extends``, ``include`` and ``--set``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from caramba_core.errors import ManifestError
from caramba_core.manifest.load import load_manifest
from caramba_core.plugins.registry import Registry

from .workspace import SMALL, Workspace, block, changed


def test_extending_a_preset(workspace: Workspace) -> None:
    loaded = workspace.load("extends: small\nname: mine\nvars: {n_layers: 7}\nmodel: {embedder: {vocab_size: 9}}\n")
    assert loaded.manifest.name == "mine"
    assert loaded.manifest.model.embedder.vocab_size == 9
    assert block(loaded).repeat == 7
    assert [group.name for group in loaded.manifest.groups] == ["main"]


def test_a_misspelt_key_that_is_inherited_is_suggested(workspace: Workspace) -> None:
    text = "extends: small\nmodel: {embedder: {vocab_sise: 9}}\n"
    with pytest.raises(ManifestError, match="unknown key 'vocab_sise' of token, did you mean 'vocab_size'"):
        workspace.load(text)


def test_a_group_may_extend_one_of_the_manifest_below(workspace: Workspace) -> None:
    text = "extends: small\ngroups:\n  - {name: main, extends: main, vars: {n_layers: 9}}\n"
    loaded = workspace.load(text)
    assert [group.name for group in loaded.manifest.groups] == ["main"]
    assert block(loaded).repeat == 9
    assert len(loaded.manifest.groups[0].runs) == 2


def test_files_are_named_relative_to_the_one_that_names_them(workspace: Workspace) -> None:
    workspace.write(
        "base/all.yml",
        SMALL.replace("layers: [{type: rms_norm}, {type: swiglu, d_ff: 128}]", "layers: {include: parts/mlp.yml}"),
    )
    workspace.write("base/parts/mlp.yml", "- rms_norm\n- {type: swiglu, d_ff: 77}\n")
    loaded = workspace.load("extends: base/all.yml\n")
    assert block(loaded).layers[1].layers[1].d_ff == 77
    assert loaded.folder == workspace.folder
    workspace.write("base/parts/mlp.yml", "- rms_norm\n- {type: swiglu, d_ff: -7}\n")
    with pytest.raises(ManifestError) as caught:
        load_manifest(workspace.folder / "m.yml")
    (problem,) = caught.value.problems
    assert Path(problem.file) == workspace.folder / "base" / "parts" / "mlp.yml"
    assert (problem.line, problem.column) == (2, 24)
    assert len(problem.notes) == 2


def test_several_are_laid_on_one_another(workspace: Workspace) -> None:
    workspace.write("a.yml", "vars: {n_layers: 4, d_model: 32}\nname: a\n")
    workspace.write("b.json", '{"vars": {"n_layers": 5}}')
    loaded = workspace.load("extends: [small, a.yml, b.json]\n")
    assert loaded.manifest.name == "a"
    assert block(loaded).repeat == 5
    assert loaded.manifest.model.embedder.d_model == 32  # type: ignore[attr-defined]


def test_include_lays_its_siblings_on_the_file(workspace: Workspace) -> None:
    workspace.write("token.yml", "{type: token, vocab_size: 5, d_model: 6}")
    text = changed(('{type: token, vocab_size: 100, d_model: "${d_model}"}', "{include: token.yml, d_model: 8}"))
    embedder = workspace.load(text).manifest.model.embedder
    assert (embedder.vocab_size, embedder.d_model) == (5, 8)  # type: ignore[attr-defined]


def test_what_is_extended_stays_required(workspace: Workspace) -> None:
    workspace.write("a.yml", SMALL + "requires: [caramba-plugin-example>=1]\n")
    loaded = workspace.load("extends: a.yml\nrequires: [caramba-plugin-example<2, caramba-plugin-example>=1]\n")
    assert loaded.manifest.requires == ("caramba-plugin-example>=1", "caramba-plugin-example<2")
    (problem,) = workspace.report("extends: a.yml\nrequires: [caramba-plugin-example>=5]\n")
    assert problem.startswith("2:12 ")


def test_requires_comes_before_everything_else(workspace: Workspace) -> None:
    (problem,) = workspace.report("requires: [some-plugin]\nextends: nowhere\nversion: 9\n")
    assert problem.startswith("1:12 requires: the manifest requires some-plugin, which is not installed")


def test_a_manifest_that_extends_itself(workspace: Workspace) -> None:
    (problem,) = workspace.report("extends: m.yml\n")
    assert "go round in a circle" in problem


def test_there_is_an_end_to_including(workspace: Workspace) -> None:
    for index in range(40):
        workspace.write(f"{index}.yml", f"extends: {index + 1}.yml\n")
    (problem,) = workspace.report("extends: 0.yml\n")
    assert "at most 32 texts" in problem


# ------------------------------------------------------------------------------------------------ --set


def test_set_reaches_everything(workspace: Workspace) -> None:
    loaded = workspace.load(
        SMALL,
        "vars.n_layers=5",
        "groups.0.runs.1.train.lr=1e-4",
        "groups.main.runs.tune.steps=${n_layers}",
        "groups.0.teacher={source: other.gguf, dtype: bfloat16}",
        "groups.0.eval.windows=3",
        "name=changed",
        'model.topology.layers.0.each."attention.window"=[1, 2, 3, 4, 5]',
        "groups.0.runs.1.train.lr=2e-4",
    )
    group = loaded.manifest.groups[0]
    assert loaded.manifest.name == "changed"
    assert block(loaded).repeat == 5
    assert block(loaded).each == {"attention.window": (1, 2, 3, 4, 5)}
    tune: Any = group.runs[1]
    assert group.teacher is not None and group.eval is not None
    assert tune.train.lr == 2e-4
    assert tune.steps == 5
    assert (group.teacher.source, group.teacher.dtype) == ("other.gguf", "bfloat16")
    assert group.eval.windows == 3


def test_set_reaches_what_a_group_takes_over(workspace: Workspace) -> None:
    text = changed(("groups:\n", "groups:\n  - {name: b, extends: main}\n"))
    b, main = workspace.load(text, "groups.b.runs.tune.steps=99").manifest.groups
    assert (b.runs[1].steps, main.runs[1].steps) == (99, 10)


def test_set_reaches_one_group_of_a_matrix(workspace: Workspace) -> None:
    text = changed(("    teacher:", "    matrix: {n_layers: [1, 3]}\n    teacher:"))
    loaded = workspace.load(text, "groups.main-n_layers_3.runs.tune.steps=99", "groups.0.vars.n_layers=8")
    assert [group.runs[1].steps for group in loaded.manifest.groups] == [10, 99]
    assert [block(loaded, index).repeat for index in range(2)] == [8, 3]


def test_set_gives_variables_that_a_matrix_is_made_of(workspace: Workspace) -> None:
    text = changed(
        ("n_layers: 2", "n_layers: 2, depths: [4]"),
        ("    teacher:", '    matrix: {n_layers: "${depths}"}\n    teacher:'),
    )
    loaded = workspace.load(text, "vars.depths=[5, 6]")
    assert [block(loaded, index).repeat for index in range(2)] == [5, 6]


# ------------------------------------------------------------------------------------------------ presets


def test_a_preset_s_files_are_relative_to_the_current_folder(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.folder)
    assert load_manifest("small").folder == workspace.folder


def test_a_preset_is_not_looked_for_where_a_file_is_named(example_plugins: Registry) -> None:
    with pytest.raises(ManifestError) as caught:
        load_manifest("small.yml")
    (problem,) = caught.value.problems
    assert problem.message == "there is no such file"
    assert problem.hint == "a preset is named without a suffix: small"


def test_a_name_that_is_a_file_s_stem(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    workspace.write("mine.yml", SMALL)
    with pytest.raises(ManifestError) as caught:
        load_manifest("mine")
    assert caught.value.problems[0].hint == "for the file beside it, write mine.yml"
