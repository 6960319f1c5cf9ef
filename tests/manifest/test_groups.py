"""Groups: extending one another, ``matrix``, and a model of their own."""

from __future__ import annotations

from .workspace import Workspace, block, changed


def test_a_group_takes_over_and_changes(workspace: Workspace) -> None:
    text = changed(
        (
            "groups:\n",
            "groups:\n  - {name: other, extends: main, teacher: {dtype: bfloat16}, runs: [{id: only, mode: eval}]}\n",
        )
    )
    other, main = workspace.load(text).manifest.groups
    assert other.teacher is not None and main.teacher is not None
    assert (other.teacher.source, other.teacher.dtype) == ("teacher.gguf", "bfloat16")
    assert main.teacher.dtype == "float32"
    assert other.data == main.data
    assert [run.id for run in other.runs] == ["only"]


def test_chains_of_extending(workspace: Workspace) -> None:
    text = changed(
        (
            "groups:\n",
            "groups:\n  - {name: c, extends: b, vars: {d_model: 8}}\n"
            "  - {name: b, extends: main, vars: {n_layers: 5}}\n",
        )
    )
    loaded = workspace.load(text)
    assert block(loaded, 0).repeat == 5
    assert loaded.manifest.groups[0].model.embedder.d_model == 8  # type: ignore[attr-defined]
    assert loaded.manifest.groups[1].model.embedder.d_model == 64  # type: ignore[attr-defined]


def test_a_group_is_laid_over_the_one_of_its_name_below(workspace: Workspace) -> None:
    workspace.write("below.yml", changed())
    workspace.write("middle.yml", "extends: below.yml\ngroups:\n  - {name: main, extends: main, vars: {n_layers: 5}}\n")
    again = "extends: middle.yml\ngroups:\n  - {name: main, extends: main, vars: {d_model: 8}}\n"
    for text, width in (("extends: middle.yml\n", 64), (again, 8)):
        (main,) = workspace.load(text).manifest.groups
        assert main.model.topology.layers[0].repeat == 5  # type: ignore[attr-defined]
        assert main.model.embedder.d_model == width  # type: ignore[attr-defined]


def test_a_matrix_makes_a_group_of_each_combination(workspace: Workspace) -> None:
    text = changed(("    teacher:", "    matrix: {n_layers: [1, 3], d_model: [8, 16]}\n    teacher:"))
    loaded = workspace.load(text)
    assert [group.name for group in loaded.manifest.groups] == [
        "main-n_layers_1-d_model_8",
        "main-n_layers_1-d_model_16",
        "main-n_layers_3-d_model_8",
        "main-n_layers_3-d_model_16",
    ]
    assert [block(loaded, index).repeat for index in range(4)] == [1, 1, 3, 3]


def test_numbers_of_a_matrix_have_names_of_their_own(workspace: Workspace) -> None:
    text = changed(
        ("vars: {", "vars: {lr: 1, "), ("    teacher:", "    matrix: {lr: [0.5, -0.5, 1.0e+16, 1.0e-16]}\n    teacher:")
    )
    names = [group.name for group in workspace.load(text).manifest.groups]
    assert names == ["main-lr_0.5", "main-lr_-0.5", "main-lr_1e16", "main-lr_1e-16"]


def test_a_matrix_leaves_a_name_alone_that_is_made_of_variables(workspace: Workspace) -> None:
    text = changed(
        ("name: main", 'name: "depth${n_layers}"'), ("    teacher:", "    matrix: {n_layers: [1, 3]}\n    teacher:")
    )
    assert [group.name for group in workspace.load(text).manifest.groups] == ["depth1", "depth3"]


def test_a_matrix_of_a_variable_that_is_a_list(workspace: Workspace) -> None:
    text = changed(
        ("n_layers: 2", "n_layers: 2, depths: [4, 5]"),
        ("    teacher:", '    matrix: {n_layers: "${depths}"}\n    teacher:'),
    )
    loaded = workspace.load(text)
    assert [block(loaded, index).repeat for index in range(2)] == [4, 5]


def test_a_group_s_own_model_is_laid_on_the_manifest_s(workspace: Workspace) -> None:
    text = changed(("    teacher:", "    model: {tied_embeddings: false, embedder: {vocab_size: 7}}\n    teacher:"))
    loaded = workspace.load(text)
    assert loaded.manifest.model.tied_embeddings
    model = loaded.manifest.groups[0].model
    assert not model.tied_embeddings
    assert model.embedder.vocab_size == 7
    assert model.topology == loaded.manifest.model.topology


def test_a_component_of_another_type_replaces_the_whole(workspace: Workspace) -> None:
    text = changed(("    teacher:", "    model: {topology: {type: residual, layers: [rms_norm]}}\n    teacher:"))
    topology = workspace.load(text).manifest.groups[0].model.topology
    assert type(topology).__name__ == "Chain"
    assert len(topology.layers) == 1  # type: ignore[attr-defined]


def test_one_mistake_in_the_model_is_one_problem_for_all_groups(workspace: Workspace) -> None:
    text = changed(
        ("d_ff: 128", "d_ff: 0"), ("groups:\n", "groups:\n  - {name: b, extends: main, vars: {n_layers: 5}}\n")
    )
    assert workspace.report(text) == ["17:78 model.topology.layers.0.layers.1.layers.1.d_ff: 0 is below 1 features"]


def test_a_mistake_of_a_group_that_others_take_over_is_one_problem(workspace: Workspace) -> None:
    text = changed(("lr: 1.0e-3", "lr: high"), ("groups:\n", "groups:\n  - {name: b, extends: main}\n"))
    (problem,) = workspace.report(text)
    assert problem.startswith("28:40 ")


def test_runs_go_on_from_earlier_ones(workspace: Workspace) -> None:
    text = changed(("        mode: train\n", "        mode: train\n        from: convert\n"))
    assert workspace.load(text).manifest.groups[0].runs[1].from_ == "convert"
    text = f"{text}  - name: second\n    extends: main\n    runs: [{{id: e, mode: eval, from: main/tune}}]\n"
    assert workspace.load(text).manifest.groups[1].runs[0].from_ == "main/tune"


def test_one_matrix_group_may_go_on_from_another(workspace: Workspace) -> None:
    text = changed(("    teacher:", "    matrix: {n_layers: [1, 3]}\n    teacher:"))
    text += "  - name: second\n    extends: main\n    matrix: {n_layers: [2]}\n"
    text += "    runs: [{id: e, mode: eval, from: main-n_layers_3/tune}]\n"
    assert workspace.report(text) == []
