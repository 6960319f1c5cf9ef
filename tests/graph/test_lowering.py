"""Widths, places and faults of lowered models."""

from __future__ import annotations

from typing import Any

import pytest

from caramba_core.components import Head, Layer
from caramba_core.errors import Faults, ManifestError
from caramba_core.graph import MAX_APPLICATIONS, MAX_NODES, MAX_VALUES
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model

from .models import GQA, MLP, NORM, faults_of, graph_of, linear, model_of, nested, residual, stacked


def at(model: Any, path: tuple[str | int, ...]) -> Any:
    """What stands at a path of a model; the path begins with ``model``."""
    for part in path[1:]:
        model = model[part]
    return model


# ------------------------------------------------------------------------------------------------ widths and ends


def test_widths_flow() -> None:
    graph = graph_of(linear(16), nested(2, residual(NORM, GQA), name="b"), linear(10))
    widths = {name: (node.width_in, node.width_out) for name, node in graph.nodes().items()}
    assert widths["model.embedder"] == (40, 24)
    assert widths["model.linear"] == (24, 16)
    assert widths["model.b"] == widths["model.b.1.attention"] == (16, 16)
    assert widths["model.linear_2"] == (16, 10)
    assert widths["model.head"] == (10, 40)


def test_widths_flow_from_body_to_body() -> None:
    nodes = graph_of(nested(3, NORM, linear(10), NORM)).nodes()
    assert [nodes[f"model.blocks.{index}.norm"].width_in for index in range(3)] == [24, 10, 10]
    assert nodes["model.blocks"].width_out == nodes["model.head"].width_in == 10
    branches = graph_of({"type": "parallel", "layers": [linear(10), linear(10)]}).nodes()
    assert branches["model.parallel.1.linear"].width_in == 24
    assert branches["model.parallel"].width_out == 10


def test_the_head_is_filled_in() -> None:
    head = graph_of(NORM, tied=True).head.config
    assert isinstance(head, Head)
    assert (head.vocab_size, head.tied) == (40, True)
    wider = graph_of(NORM, head={"type": "linear", "vocab_size": 64}).head
    assert (wider.width_out, wider.path) == (64, ("model", "head"))


@pytest.mark.parametrize(
    ("more", "path", "message"),
    [
        ({"head": {"type": "linear", "tied": True}}, ("model", "head", "tied"), "the head is tied, the model is not"),
        ({"head": {"type": "linear", "vocab_size": 39}}, ("model", "head", "vocab_size"), "the head has 39 logits"),
        (
            {"head": {"type": "linear", "vocab_size": 41}, "tied": True},
            ("model", "head", "vocab_size"),
            "the head has 41 logits",
        ),
    ],
)
def test_heads_that_cannot_be(more: dict[str, Any], path: tuple[str, ...], message: str) -> None:
    (fault,) = faults_of(NORM, **more)
    assert (fault.path, fault.message) == (path, message)


def test_a_tied_head_needs_the_embedders_width() -> None:
    (fault,) = faults_of(linear(16), NORM, tied=True)
    assert fault.path == ("model", "tied_embeddings")
    assert "model.head cannot read the matrix of model.embedder, which is 24 wide" in fault.message
    assert "model.norm gives it a width of 16" in fault.message


# ------------------------------------------------------------------------------------------------ faults


def test_widths_that_do_not_meet_name_both_nodes() -> None:
    (fault,) = faults_of(NORM, nested(2, residual(GQA), residual(NORM, linear(16))))
    assert fault.path == ("model", "topology", "layers", 1, "layers", 1, "layers", 1)
    assert "24 from model.blocks.0.attention" in fault.message
    assert "16 from model.blocks.0.linear" in fault.message


def test_branches_that_do_not_meet_name_both_branches() -> None:
    (fault,) = faults_of({"type": "parallel", "layers": [linear(10), MLP, stacked(NORM, linear(12))]})
    assert fault.path == ("model", "topology", "layers", 0, "layers", 1)
    assert "10 from model.parallel.0.linear" in fault.message
    assert "24 from model.parallel.1.mlp" in fault.message


def test_all_faults_in_one_report() -> None:
    faults = faults_of(
        residual(linear(16)),
        {**NORM, "name": "a b"},
        residual(NORM, linear(12)),
        {"type": "recurrent", "times": 2, "layers": [linear(7)]},
        tied=True,
        head={"type": "linear", "vocab_size": 3},
    )
    assert [fault.path[2:4] for fault in faults[:4]] == [("layers", index) for index in range(4)]
    assert faults[4].path == ("model", "head", "vocab_size")
    with pytest.raises(Faults) as caught:
        graph_of(residual(linear(16)), residual(NORM, linear(12)))
    assert str(caught.value).count("model.topology.layers") == 2
    assert caught.value.exit_code == 2


def test_a_fault_in_every_repetition_is_one_fault() -> None:
    (fault,) = faults_of(nested(30, residual(linear(16)), {"type": "recurrent", "times": 2, "layers": [NORM]}))
    assert "model.blocks.0.linear" in fault.message


def test_faults_carry_the_path_that_was_asked_for() -> None:
    model = structure_model(model_of(residual(linear(16))))
    with pytest.raises(Faults) as caught:
        lower(model, ("groups", 3, "model"))
    assert caught.value.faults[0].path == ("groups", 3, "model", "topology", "layers", 0, "layers", 0)


# ------------------------------------------------------------------------------------------------ places


def test_every_node_knows_where_it_was_written() -> None:
    model = model_of(
        nested(3, residual(NORM, {**GQA, "window": 4}), residual(NORM, MLP), each={"attention.window": [1, 2, 3]}),
        {"type": "parallel", "layers": [stacked(NORM, linear(24)), linear(24)]},
        {"type": "branching", "router": "softmax", "layers": [MLP, MLP]},
        {"type": "cyclic", "times": 3, "layers": [NORM, stacked(NORM, MLP)]},
        {"type": "recurrent", "times": 2, "layers": [NORM, residual(MLP)]},
        stacked(NORM, name="tail"),
    )
    graph = lower(structure_model(model))
    types = {"norm": "rms_norm", "attention": "gqa", "mlp": "swiglu", "linear": "linear", "tail": "stacked"}
    for node in graph.topology.walk():
        written = at(model, node.path)
        assert isinstance(written, dict), node.path
        role = node.name.rsplit(".", 1)[-1].split("_")[0]
        if not node.inline and role in types:
            assert written["type"] == types[role], (node.name, node.path)


def test_equal_layers_of_different_branches_have_different_places() -> None:
    branches = [stacked(NORM, linear(24)), stacked(NORM, linear(24))]
    nodes = graph_of({"type": "parallel", "layers": branches}).nodes()
    assert nodes["model.parallel.0.linear"].path == ("model", "topology", "layers", 0, "layers", 0, "layers", 1)
    assert nodes["model.parallel.1.linear"].path == ("model", "topology", "layers", 0, "layers", 1, "layers", 1)


def test_variants_know_their_places() -> None:
    model = model_of(nested(3, NORM, variants=[[{"type": "layer_norm"}]], order=[0, 1, 0]))
    nodes = lower(structure_model(model)).nodes()
    assert at(model, nodes["model.blocks.1.norm"].path) == {"type": "layer_norm"}
    assert at(model, nodes["model.blocks.2.norm"].path) == {"type": "rms_norm"}


# ------------------------------------------------------------------------------------------------ size


def test_the_node_budget() -> None:
    assert len(list(graph_of(nested(4_000, NORM, MLP)).walk())) < MAX_NODES
    (fault,) = faults_of(nested(10, nested(1_500, NORM, MLP)))
    assert f"more than {MAX_NODES:,} nodes" in fault.message
    assert fault.hint is not None
    assert "repeat" in fault.hint
    (fault,) = faults_of(nested(20_000, NORM, MLP, name="many"))
    assert fault.path == ("model", "topology", "layers", 0)
    with pytest.raises(ManifestError, match="is above 20000"):
        graph_of(nested(10**9, NORM))


def repeated(kind: str, times: int, *layers: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "times": times, "layers": list(layers)}


@pytest.mark.parametrize("kind", ["recurrent", "cyclic"])
def test_how_often_nodes_are_applied(kind: str) -> None:
    assert graph_of(repeated(kind, 100_000, MLP)).nodes()[f"model.{kind}"]
    with pytest.raises(ManifestError, match="is above 1000000"):
        graph_of(repeated(kind, 10**9, MLP))
    inner = repeated(kind, 2_000, MLP)
    for outer in (repeated("recurrent", 1_000, inner), nested(1_000, inner), repeated("cyclic", 1_000, inner)):
        (fault,) = faults_of(outer)
        assert f"more than {MAX_APPLICATIONS:,} nodes" in fault.message
        assert fault.path == ("model", "topology", "layers", 0, "layers", 0)  # which applies the most


HUGE = 1 << 62


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"type": "swiglu", "d_ff": HUGE}, "the weight gate_proj is too large: 4,611,686,018,427,387,904 x 24 values"),
        ({**GQA, "n_heads": HUGE}, "the weight q_proj is too large"),
        ({**GQA, "type": "linear_attention", "features": 1 << 39, "window": 4}, "the cached state is too large"),
        (
            {"type": "parallel", "combine": "concatenate", "d_out": HUGE, "layers": [MLP]},
            "the weight out_proj is too large",
        ),
    ],
    ids=["mlp", "heads", "state", "parallel"],
)
def test_tensors_that_no_machine_holds(layer: dict[str, Any], said: str) -> None:
    faults = faults_of(layer, linear(24))
    assert any(said in fault.message for fault in faults)
    assert all(fault.expected == f"at most {MAX_VALUES:,} values" for fault in faults)


def test_work_grows_with_the_number_of_layers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the layers are twice the questions to components: nothing is asked again for what holds it."""
    asked = 0
    original = Layer.check

    def counting(self: Layer, width: int) -> None:
        nonlocal asked
        asked += 1
        original(self, width)

    monkeypatch.setattr(Layer, "check", counting)
    counts = []
    for repeat in (50, 100, 200):
        asked = 0
        graph_of(nested(repeat, residual(NORM, MLP)))
        counts.append(asked)
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])
