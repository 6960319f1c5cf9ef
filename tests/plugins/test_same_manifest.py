"""One upcycle manifest converts to any shipped attention: only its type and its sizes change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from ruamel.yaml import YAML

from caramba_core.plugins.registry import registry

ROOT = Path(__file__).resolve().parents[2]
ATTENTIONS = ("dba", "mla", "sliding_window", "linear_attention")
TEACHERS = {"n_heads", "n_kv_heads", "head_dim", "rope"}
"""What every one of them takes over from the teacher."""


def read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    return loaded


def only_sizes(attention: dict[str, Any], variables: dict[str, Any]) -> None:
    """Beside its type and the one option that all share, whole numbers, or what would be so anyway."""
    fields = dict(attention)
    assert fields.pop("o_bias") is True
    component = registry().load(registry().find(("attention",), fields.pop("type")))
    defaults = {field.name: field.default for field in attrs.fields(component)}
    for name, value in fields.items():
        if isinstance(value, str):
            value = variables[value.removeprefix("${").removesuffix("}")]
        assert type(value) is int or value == defaults[name], f"{name} is {value!r}, which is no size"


def test_groups_of_one_manifest_differ_in_type_and_sizes_only() -> None:
    manifest = read(ROOT / "bench" / "attentions.yml")
    groups = {group["name"]: group for group in manifest["groups"]}
    assert set(groups) == {*ATTENTIONS, *(f"{name}_half" for name in ATTENTIONS)}
    for type_ in ATTENTIONS:
        group = groups[type_]
        attention = manifest["vars"]["attention"] if type_ == "dba" else group["vars"]["attention"]
        assert attention["type"] == type_
        only_sizes(attention, {})
        if type_ != "dba":
            assert group == {"name": type_, "extends": "dba", "vars": {"attention": attention}}
        half = {"name": f"{type_}_half", "extends": type_, "vars": {"odd": {"type": "gqa"}}}
        assert groups[f"{type_}_half"] == half


def without_attention(model: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model with a mark in the attention's place, and the attention."""
    (blocks, _) = model["topology"]["layers"]
    mixing = blocks["layers"][0]["layers"]
    attention = mixing[1]
    mixing[1] = "attention"
    return model, attention


@pytest.mark.parametrize("type_", ATTENTIONS[1:])
def test_presets_of_one_model_differ_in_type_and_sizes_only(type_: str) -> None:
    found = []
    for name in ("dba", type_):
        preset = registry().load(registry().find(("preset",), f"smollm2_135m_{name}"))
        document = read(preset)
        model, attention = without_attention(document["model"])
        taken = {key: attention.pop(key) for key in sorted(TEACHERS)}
        only_sizes(attention, document["vars"])
        group = document["groups"][0]
        found.append((model, taken, group["teacher"], group["data"], group["runs"][0]))
    assert found[0] == found[1]
