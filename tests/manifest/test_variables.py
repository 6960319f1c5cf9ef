"""``vars`` and ``${...}``."""

from __future__ import annotations

import pytest
from caramba_document.expressions import ExpressionError, evaluate
from caramba_document.reading import Reading
from caramba_document.source import SourceText, TextSpan
from caramba_document.tree import Scalar
from caramba_document.variables import Variables
from hypothesis import given
from hypothesis import strategies as st

from .workspace import Workspace, block, changed


def test_a_whole_value_keeps_its_type(workspace: Workspace) -> None:
    text = changed(
        ("n_layers: 2", 'n_layers: 2, layers: [{type: rms_norm}], tied: false, source: "a/b.gguf", rope: {theta: 5.0}'),
        ("tied_embeddings: true", "tied_embeddings: ${tied}"),
        ("[{type: rms_norm}, {type: swiglu, d_ff: 128}]", '"${layers}"'),
        ("source: teacher.gguf", 'source: "${source}"'),
        ("rope: {theta: 10000.0}", 'rope: "${rope}"'),
    )
    loaded = workspace.load(text)
    assert loaded.manifest.model.tied_embeddings is False
    assert len(block(loaded).layers[1].layers) == 1
    assert block(loaded).layers[0].layers[1].rope.theta == 5.0
    assert loaded.manifest.groups[0].teacher is not None
    assert loaded.manifest.groups[0].teacher.source == "a/b.gguf"


def test_text_around_a_variable_makes_a_string(workspace: Workspace) -> None:
    text = changed(("source: teacher.gguf", 'source: "at/${d_model}-${n_layers * 3}/$${kept}.gguf"'))
    loaded = workspace.load(text)
    assert loaded.manifest.groups[0].teacher is not None
    assert loaded.manifest.groups[0].teacher.source == "at/64-6/${kept}.gguf"
    assert loaded.document["groups"][0]["teacher"]["source"] == "at/64-6/$${kept}.gguf"


def test_variables_are_made_of_one_another_in_any_order(workspace: Workspace) -> None:
    text = changed(("n_layers: 2, d_model: 64", 'n_layers: "${a - 1}", a: "${b}", b: "${d_model // 20}", d_model: 64'))
    assert block(workspace.load(text)).repeat == 2


def test_a_group_changes_what_is_made_of_its_variables(workspace: Workspace) -> None:
    text = changed(
        ("d_model: 64}", 'd_model: 64, width: "${d_model * 2}"}'),
        ("d_ff: 128", 'd_ff: "${width}"'),
        ("groups:\n", "groups:\n  - {name: wide, extends: main, vars: {d_model: 100}}\n"),
    )
    loaded = workspace.load(text)
    assert block(loaded, 0).layers[1].layers[1].d_ff == 200
    assert block(loaded, 1).layers[1].layers[1].d_ff == 128
    assert loaded.manifest.model is loaded.manifest.groups[1].model


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7", 7),
        (" a ", 10),
        ("a + b * 2", 16),
        ("(a + b) * 2", 26),
        ("a // b", 3),
        ("-a // b", -4),
        ("a % b", 1),
        ("a - b - 1", 6),
        ("--a", 10),
        ("2*(a-(b+1))", 12),
        ("a//b//2", 1),
        ("(a)\n//(b)", 3),
        ("010", 10),
        ("lambda * if", 1),
        (" + ".join("a" * 100), 1000),
    ],
)
def test_arithmetic(expression: str, value: int) -> None:
    assert evaluate(expression, lambda name, _: {"a": 10, "b": 3}.get(name, 1)) == value


@pytest.mark.parametrize(
    "expression",
    ["", "+", "a b", "a +", "(a", "a)", "a / b", "a ** b", "1.5", "1e3", "a.b", "f(a)", "a < b", "'a'", "a // 0",
     "a[0]", "__import__('os')", "9" * 40, "a * " * 50, "-" * 40 + "a", "a * (" * 40 + "a" + ")" * 40,
     "(" * 300 + "a" + ")" * 300, "()", "a # b", "(a) + (b", "a) + (b", "+a", "é", "1_000", "0x10", "a % (b - b)"],
)  # fmt: skip
def test_what_is_not_arithmetic(expression: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        evaluate(expression, lambda name, _: {"a": 10, "b": 3}.get(name, 1))
    assert 0 <= caught.value.start <= len(expression)


@given(
    st.recursive(
        st.integers(0, 50).map(str), lambda e: st.tuples(e, st.sampled_from("+-*"), e).map(" ".join).map("({})".format)
    )
)
def test_arithmetic_is_python_s(expression: str) -> None:
    try:
        found = evaluate(expression, lambda name, _: 0)
    except ExpressionError as error:
        assert "nests" in error.message or "64 bits" in error.message
    else:
        assert found == eval(expression)


@given(st.text(alphabet="${}ab +"))
def test_what_is_escaped_comes_back(text: str) -> None:
    source = SourceText(name="m.yml", text="")
    reading = Reading()
    node = Variables({}, reading).resolve(Scalar(text.replace("${", "$${"), TextSpan(source, 0, 0)))
    assert node.text == text
    assert not reading.problems


def test_a_variable_that_nothing_uses_is_checked_all_the_same(workspace: Workspace) -> None:
    text = changed(("n_layers: 2", 'n_layers: 2, idle: "${nothing}"'))
    assert workspace.report(text) == ["3:30 unknown variable 'nothing'"]


def test_marks_stand_on_the_name_inside_the_text(workspace: Workspace) -> None:
    (problem,) = workspace.report(changed(("source: teacher.gguf", "source: 'a/${ nowhere }/b'")))
    assert problem == "20:29 unknown variable 'nowhere'"
    (problem,) = workspace.report(changed(("source: teacher.gguf", 'source: "\\x41/${nowhere}"')))
    assert problem == "20:23 unknown variable 'nowhere'"  # escapes shift what follows: the whole string is marked
