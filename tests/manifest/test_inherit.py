"""``model: {from: teacher, replace: ...}``, on a real checkpoint's headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from caramba_document.writing import dump

from caramba_core.errors import ManifestError
from caramba_core.lowering import lower
from caramba_core.manifest.load import Loaded, load_manifest
from caramba_core.plugins.registry import Registry, registry

CONFIG = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "sliding_window": 16,
    "tie_word_embeddings": False,
}


def checkpoint(folder: Path, **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    config = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(96))


def manifest(model: str, group: str = "") -> str:
    return (
        f"version: 1\nname: taken\nvars: {{sem: 8}}\nmodel: {model}\ngroups:\n"
        f"  - name: g\n    teacher: {{source: teacher}}\n    data: {{train: t.npy, heldout: h.npy}}\n{group}"
        "    runs: [{id: convert, mode: convert}]\n"
    )


def load(folder: Path, model: str, group: str = "") -> Loaded:
    (folder / "m.yml").write_text(manifest(model, group))
    return load_manifest(folder / "m.yml")


def report(folder: Path, model: str, group: str = "") -> list[str]:
    with pytest.raises(ManifestError) as caught:
        load(folder, model, group)
    return [f"{p.line}:{p.column} {p.headline}" for p in caught.value.problems]


def types(loaded: Loaded, node: str) -> list[str]:
    nodes = lower(loaded.manifest.groups[0].model).nodes()
    return [type(nodes[f"model.blocks.{index}.{node}"].config).__name__ for index in range(4)]


def attention(loaded: Loaded, index: int) -> Any:
    return lower(loaded.manifest.groups[0].model).nodes()[f"model.blocks.{index}.attention"].config


DBA = "{type: dba, sem_dim: 8, geo_dim: 8, v_dim: 8, o_bias: true}"


def test_the_teacher_s_model_as_it_is(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    loaded = load(tmp_path, "{from: teacher}")
    model: Any = loaded.manifest.model
    assert (model.embedder.vocab_size, model.embedder.d_model) == (50, 24)
    assert types(loaded, "attention") == ["GroupedQueryAttention"] * 4
    assert attention(loaded, 3).window == 16
    assert loaded.manifest.groups[0].model == model


def test_a_replacement_takes_over_heads_width_and_rope(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    loaded = load(tmp_path, f'{{from: teacher, replace: {{"blocks.*.attention": {DBA}}}}}')
    assert types(loaded, "attention") == ["DecoupledBottleneckAttention"] * 4
    config = attention(loaded, 2)
    assert (config.n_heads, config.n_kv_heads, config.head_dim, config.rope.theta) == (4, 2, 6, 5000.0)
    assert "variants" not in dump(loaded.document)


def test_what_is_set_is_not_taken_over(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    replaced = "{type: dba, sem_dim: 8, geo_dim: 4, v_dim: 8, n_kv_heads: 1, rope: {theta: 9.0}}"
    config = attention(load(tmp_path, f"{{from: teacher, replace: {{attention: {replaced}}}}}"), 0)
    assert (config.n_heads, config.n_kv_heads, config.rope.theta) == (4, 1, 9.0)


def test_any_subset_of_layers(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    loaded = load(tmp_path, f'{{from: teacher, replace: {{"blocks.[12].attention": {DBA}}}}}')
    first, *_ = types(loaded, "attention")
    assert types(loaded, "attention") == [first, *["DecoupledBottleneckAttention"] * 2, first]
    assert attention(loaded, 0).window == 16
    topology: Any = loaded.manifest.model.topology
    assert topology.layers[0].order == (0, 1, 1, 0)


def test_values_by_repetition_stay_where_nothing_is_replaced(tmp_path: Path) -> None:
    qwen = {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 16,
        "max_window_layers": 2,
        "head_dim": None,
    }
    checkpoint(tmp_path / "teacher", **qwen)
    before = [attention(load(tmp_path, "{from: teacher}"), index).window for index in range(4)]
    assert len(set(before)) == 2
    mlp = load(tmp_path, '{from: teacher, replace: {"blocks.1.mlp": {d_ff: 5}}}')
    assert [attention(mlp, index).window for index in range(4)] == before
    some = load(tmp_path, f'{{from: teacher, replace: {{"blocks.[13].attention": {DBA}}}}}')
    assert [attention(some, index).window for index in range(4)] == before
    same = load(tmp_path, '{from: teacher, replace: {"blocks.3.attention": {scale: 2.0}}}')
    assert [attention(same, index).window for index in range(4)] == before
    assert [attention(same, index).scale for index in range(4)] == [None, None, None, 2.0]


def test_nodes_that_are_not_repeated(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    loaded = load(
        tmp_path, "{from: teacher, replace: {norm: {eps: 0.05}, embedder: {init_std: 0.1}}, tied_embeddings: true}"
    )
    nodes: Any = lower(loaded.manifest.model).nodes()
    assert [node.config.eps for name, node in nodes.items() if ".norm" in name] == [0.05] * 9
    assert nodes["model.embedder"].config.init_std == 0.1
    assert loaded.manifest.model.tied_embeddings


def test_groups_replace_differently(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    dba = DBA.replace("sem_dim: 8", 'sem_dim: "${sem}"')
    loaded = load(tmp_path, f"{{from: teacher, replace: {{attention: {dba}}}}}", "    vars: {sem: 2}\n")
    assert attention(loaded, 0).sem_dim == 2
    topology: Any = loaded.manifest.model.topology
    assert topology.layers[0].layers[0].layers[1].sem_dim == 8


def test_what_is_resolved_needs_no_teacher(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    loaded = load(tmp_path, f'{{from: teacher, replace: {{"blocks.[12].attention": {DBA}}}}}')
    (tmp_path / "teacher" / "config.json").unlink()
    (tmp_path / "r.yml").write_text(dump(loaded.document))
    assert load_manifest(tmp_path / "r.yml").manifest == loaded.manifest


def test_the_resolved_manifest_tells_the_teachers_keys(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher", rope_scaling={"rope_type": "linear", "factor": 2.0})
    loaded = load(tmp_path, f'{{from: teacher, replace: {{"blocks.[12].attention": {DBA}}}}}')
    for group in (None, "g"):
        document = loaded.document if group is None else loaded.resolved_group(group)
        text = dump(document, loaded.teacher_keys(group))
        lines = {line.strip() for line in text.splitlines()}
        assert "tied_embeddings: false  # teacher config: tie_word_embeddings" in lines
        assert (
            "embedder: {type: token, vocab_size: 50, d_model: 24}  # teacher config: vocab_size, hidden_size" in lines
        )
        assert any(line.endswith("# teacher config: rope_theta, rope_type, factor") for line in lines), text
        assert not any("sem_dim" in line and "teacher config" in line for line in lines)
        (tmp_path / "r.yml").write_text(text)
        assert load_manifest(tmp_path / "r.yml").manifest == loaded.manifest


# ------------------------------------------------------------------------------------------------ mistakes


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    found = report(tmp_path, '{from: teacher, replace: {"blocks.*.atention": {scale: 1.0}, "blocks.9.mlp": {d_ff: 3}}}')
    assert found == [
        "4:34 model.replace.\"blocks.*.atention\": no node of the teacher matches 'blocks.*.atention', "
        "did you mean 'blocks.*.attention' or 'blocks.0.attention' or 'blocks.1.attention' or 'blocks.2.attention'?",
        found[1],
    ]
    assert "no node of the teacher matches 'blocks.9.mlp'" in found[1]


def test_two_patterns_that_match_one_node(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    (problem,) = report(tmp_path, '{from: teacher, replace: {attention: {scale: 1.0}, "blocks.1.*": {name: x}}}')
    assert problem == "4:59 model.replace.\"blocks.1.*\": blocks.1.attention is matched by 'attention' already"


def test_layers_beside_the_teachers(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    (problem,) = report(tmp_path, "{from: teacher, topology: {type: stacked, layers: [rms_norm]}, replace: {}}")
    assert problem.startswith("4:15 model.from: the model has layers of its own beside the teacher's")


def test_a_mistake_in_a_replacement_stands_where_it_is_written(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    text = DBA.replace("v_dim: 8", "v_dim: none").replace("sem_dim", "sem_dmi")
    found = report(tmp_path, f"{{from: teacher, replace: {{attention: {text}}}}}")
    assert [problem.split(" ")[0] for problem in found] == ["4:57", "4:88"]


def test_a_value_of_the_teacher_that_does_not_fit_names_its_key(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    with pytest.raises(ManifestError) as caught:
        load(
            tmp_path,
            f"{{from: teacher, replace: {{attention: {DBA.replace('geo_dim: 8', 'geo_dim: 8, n_heads: 3')}}}}}",
        )
    (problem,) = caught.value.problems
    assert problem.file.endswith("teacher: teacher config, key num_key_value_heads")
    assert problem.line is None


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("{from: 5}", "4:15 model.from: expected the name of an origin, found the integer 5"),
        ("{from: techer}", "4:15 model.from: there is no origin 'techer', did you mean 'teacher'?"),
        ("{from: teacher, replace: [1]}", "4:33 model.replace: expected a mapping of patterns, found a list of 1 item"),
    ],
)
def test_what_is_no_reference(tmp_path: Path, model: str, problem: str) -> None:
    checkpoint(tmp_path / "teacher")
    assert report(tmp_path, model) == [problem]


def test_a_teacher_that_is_not_there(tmp_path: Path) -> None:
    (problem,) = report(tmp_path, "{from: teacher}")
    assert problem.startswith("7:23 ")
    assert "teacher" in problem


def test_a_group_without_a_teacher(tmp_path: Path) -> None:
    (tmp_path / "m.yml").write_text("version: 1\nname: x\nmodel: {from: teacher}\n")
    with pytest.raises(ManifestError) as caught:
        load_manifest(tmp_path / "m.yml")
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (3, 15)
    assert problem.message == "there is no teacher to take the model from"


def test_without_upcycle_the_distribution_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: registry().plugins[name] for name in ("caramba-core", "caramba-plugins-standard")}
    monkeypatch.setattr("caramba_core.manifest.load.registry", lambda: Registry(few))
    with pytest.raises(ManifestError) as caught:
        load(tmp_path, "{from: teacher}")
    problem, *_ = caught.value.problems
    assert (problem.line, problem.column, problem.message) == (4, 15, "there is no origin 'teacher'")
    assert problem.hint is not None
    assert problem.hint.endswith("pip install caramba-plugins-upcycle")


def test_a_teacher_that_cannot_be_expressed(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher", model_type="gpt2")
    (problem,) = report(tmp_path, "{from: teacher}")
    assert "gpt2" in problem
