"""``caramba explain``: every component's fields, as a table and as data."""

from __future__ import annotations

import json

import pytest
from caramba_plugins_standard.training import Training
from caramba_plugins_tools.explain import explain
from caramba_plugins_tools.fields import fields_of, sections

from caramba_core.cli import main
from caramba_core.errors import InputError
from caramba_core.plugins.registry import registry


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["explain", *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "dba")
    assert "dba  attention  caramba-plugins-dba" in text
    for words in ("sem_dim", "required", ">= 0", "values a", "shared | per_head", "rope:", "theta", "10000.0"):
        assert words in text


def test_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    (explanation,) = json.loads(shown(capsys, "attention.dba", "--json"))
    fields = {field["name"]: field for field in explanation["fields"]}
    assert fields["sem_dim"] == {
        "name": "sem_dim",
        "type": "integer",
        "required": True,
        "default": "",
        "unit": "values a token and layer",
        "range": ">= 0",
        "meaning": "cached values of the semantic keys; 0 with latent: joint",
    }
    assert fields["rope.theta"]["range"] == "> 1"
    assert fields["k_layout"]["default"] == "shared"


def test_one_name_of_several_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [explanation.kind for explanation in explain(registry(), "linear")]
    assert {"layer", "head", "schedule"} <= set(kinds)
    (head,) = explain(registry(), "head.linear")
    assert head.kind == "head"
    (same,) = explain(registry(), "head.caramba-plugins-standard:linear")
    assert same == head


def test_sections_of_a_manifest() -> None:
    fields = {field.name: field for field in fields_of(Training)}
    assert fields["lr"].required
    assert fields["lr"].range == "> 0, <= 1"
    assert fields["trains"].type == "list of text | null"
    assert fields["trains"].default == "null"
    assert "from" in {field.name for field in explain(registry(), "run")[0].fields}
    assert "optimizer.lr" not in fields


@pytest.mark.parametrize("name", sections(registry()))
def test_every_section(name: str) -> None:
    assert all(field.meaning for field in explain(registry(), name)[0].fields)


def test_every_component_and_every_field_says_what_it_is() -> None:
    for kind in registry().kinds:
        for entry in registry().entries(kind):
            (explanation,) = explain(registry(), f"{kind}.{entry.qualified}")
            assert explanation.text, entry
            for field in explanation.fields:
                assert field.meaning, (entry, field.name)


def test_names_that_nothing_has() -> None:
    with pytest.raises(InputError, match="did you mean 'dba'") as caught:
        explain(registry(), "dbaa")
    assert caught.value.hint == "caramba explain lists what there is"


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    names = json.loads(shown(capsys, "--json"))
    assert "dba" in names["attention"]
    assert "train" in names["section"]
    assert "sliding_window" in shown(capsys)
