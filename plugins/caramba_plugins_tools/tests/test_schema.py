"""The JSON Schema against the reader: what one takes, the other takes; what a schema can refuse, it refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from caramba_plugins_tools.json_schema import manifest_schema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from caramba_core.cli import main
from caramba_core.errors import ManifestError
from caramba_core.manifest.load import load_manifest
from caramba_core.plugins.registry import Registry, registry

SCHEMA = manifest_schema(registry())
VALIDATOR = Draft202012Validator(SCHEMA)


def preset(name: str) -> dict[str, Any]:
    entry = registry().find(("preset",), name)
    path = registry().load(entry)
    data = YAML(typ="safe", pure=True).load(Path(path))
    assert isinstance(data, dict)
    return data


def base() -> dict[str, Any]:
    return preset("smollm2_135m_dba")


def attention(data: dict[str, Any]) -> Any:
    return data["model"]["topology"]["layers"][0]["layers"][0]["layers"][1]


def train(data: dict[str, Any]) -> Any:
    return data["groups"][0]["runs"][1]["train"]


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA
    assert "caramba-plugins-dba" in SCHEMA["$comment"]


@pytest.mark.parametrize("name", [entry.name for entry in registry().entries("preset")])
def test_presets_are_valid(name: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(preset(name))] == []


REFUSED: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown key at the root": lambda d: d.update(modle={}),
    "missing name": lambda d: d.pop("name"),
    "missing model": lambda d: d.pop("model"),
    "another version": lambda d: d.update(version=2),
    "a name with a slash": lambda d: d.update(name="a/b"),
    "a string for a list": lambda d: d.update(requires="caramba-plugins-dba"),
    "unknown component": lambda d: attention(d).update(type="dbaa"),
    "no type": lambda d: attention(d).pop("type"),
    "misspelt field": lambda d: attention(d).update(sem_dims=3),
    "missing field": lambda d: attention(d).pop("n_heads"),
    "string for a number": lambda d: attention(d).update(n_heads="9"),
    "fraction for an integer": lambda d: attention(d).update(n_heads=2.7),
    "true for an integer": lambda d: attention(d).update(n_heads=True),
    "null for a number": lambda d: attention(d).update(n_heads=None),
    "below the minimum": lambda d: attention(d).update(n_heads=0),
    "no choice": lambda d: attention(d).update(k_layout="both"),
    "yes for true": lambda d: d["model"].update(tied_embeddings="yes"),
    "unknown part of a part": lambda d: attention(d)["rope"].update(thetta=1.0),
    "list for a mapping": lambda d: attention(d).update(rope=[1]),
    "another kind of component": lambda d: d["model"].update(embedder={"type": "rms_norm"}),
    "learning rate above one": lambda d: train(d).update(lr=10.0),
    "learning rate of zero": lambda d: train(d).update(lr=0),
    "unknown mode": lambda d: d["groups"][0]["runs"][0].update(mode="convrt"),
    "unknown strategy": lambda d: train(d).update(strategy="upcycle.globl"),
    "unknown dtype": lambda d: train(d).update(dtype="fp16"),
    "group without name": lambda d: d["groups"][0].pop("name"),
    "run without mode": lambda d: d["groups"][0]["runs"][0].pop("mode"),
    "betas of three": lambda d: train(d).update(optimizer={"type": "adamw", "betas": [0.9, 0.9, 0.9]}),
    "bare name of a component with sizes": lambda d: d["model"]["topology"]["layers"].append("swiglu"),
    "data of no known suffix": lambda d: d["groups"][0]["data"].update(train="train.csv"),
}

TAKEN: dict[str, Callable[[dict[str, Any]], object]] = {
    "variable for a number": lambda d: attention(d).update(n_heads="${heads}"),
    "arithmetic for a number": lambda d: attention(d).update(head_dim="${d_model // 9}"),
    "variable for a mapping": lambda d: attention(d).update(rope="${rope}"),
    "variable for a choice": lambda d: attention(d).update(k_layout="${layout}"),
    "variable for a type": lambda d: attention(d).update(type="${attention}"),
    "variable for a list": lambda d: train(d).update(trains="${what}"),
    "qualified type": lambda d: attention(d).update(type="caramba-plugins-dba:dba"),
    "bare name of a component": lambda d: d["model"]["topology"]["layers"].append("rms_norm"),
    "integer for a number": lambda d: attention(d)["rope"].update(theta=10000),
    "null where that is allowed": lambda d: attention(d).update(scale=None),
    "settings of a strategy": lambda d: train(d).update(strategy={"type": "upcycle.global", "temperature": 2.0}),
    "data as a mapping": lambda d: d["groups"][0]["data"].update(train={"type": "tokens", "path": "a.npy"}),
    "include": lambda d: d["model"].update(embedder={"include": "embedder.yml"}),
    "include with changes": lambda d: d["model"].update(embedder={"include": "embedder.yml", "d_model": 3}),
    "a group with a model of its own": lambda d: d["groups"][1].update(model={"tied_embeddings": False}),
    "matrix": lambda d: d["groups"][1].update(matrix={"sem_dim": [1, 2]}),
    "no groups": lambda d: d.pop("groups"),
    "layers by repetition": lambda d: d["model"]["topology"]["layers"][0].update(each={"mlp.d_ff": [1] * 30}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    data = base()
    REFUSED[case](data)
    assert not VALIDATOR.is_valid(data)


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken(case: str) -> None:
    data = base()
    TAKEN[case](data)
    assert [error.message for error in VALIDATOR.iter_errors(data)] == []


def test_manifests_that_extend_need_only_what_differs() -> None:
    assert VALIDATOR.is_valid({"extends": "smollm2_135m_dba", "vars": {"sem_dim": 20}})
    assert VALIDATOR.is_valid({"extends": ["a.yml", "b.yml"], "groups": [{"name": "x2", "extends": "x4"}]})
    assert VALIDATOR.is_valid({"extends": "a", "model": {"embedder": {"d_model": 3}}})
    assert not VALIDATOR.is_valid({"extends": "a", "modle": {}})
    assert not VALIDATOR.is_valid({"extends": "a", "model": {"embeder": {}}})
    assert not VALIDATOR.is_valid({"extends": "a", "model": {"embedder": {"type": "token", "d_modell": 3}}})


def test_models_taken_from_the_teacher() -> None:
    data = base()
    replace = {"blocks.*.attention": {"type": "dba", "sem_dim": 8}, "blocks.0.mlp": "rms_norm"}
    data["model"] = {"from": "teacher", "replace": replace}
    assert VALIDATOR.is_valid(data)
    data["model"]["from"] = "techer"
    assert not VALIDATOR.is_valid(data)
    data["model"] = {"from": "teacher", "replace": {"*": {"type": "dba", "sem_dimm": 8}}}
    assert not VALIDATOR.is_valid(data)


# ------------------------------------------------------------------------------------------------ with the reader


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


VALUES = st.sampled_from(
    [None, True, -1, 0, 3, 2.5, "", "x", "${n_layers}", "rms_norm", [], {}, {"type": "rms_norm"}, [1]]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_the_reader_takes_is_valid(tmp_path: Path, data: st.DataObject) -> None:
    """A random change of a preset that the reader takes is no error to the schema."""
    manifest = copy.deepcopy(base())
    path = data.draw(st.sampled_from(list(places(manifest))[1:]))
    target: Any = manifest
    for part in path[:-1]:
        target = target[part]
    if isinstance(target, dict) and data.draw(st.booleans()):
        if data.draw(st.booleans()):
            del target[path[-1]]
        else:
            target[data.draw(st.sampled_from(["name", "eps", "scale", "xyz", "seed"]))] = data.draw(VALUES)
    else:
        target[path[-1]] = data.draw(VALUES)
    file = tmp_path / "m.json"
    file.write_text(json.dumps(manifest))
    try:
        load_manifest(file)
    except ManifestError:
        return
    assert [error.message for error in VALIDATOR.iter_errors(manifest)] == []


# ------------------------------------------------------------------------------------------------ the rest


def test_written_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "schema.json"
    with pytest.raises(SystemExit) as ended:
        main(["schema", "-o", str(path)])
    assert ended.value.code == 0
    assert json.loads(path.read_text()) == SCHEMA
    assert f"$schema={path}" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["schema", "-o", str(tmp_path / "no" / "folder.json")])
    assert ended.value.code == 2


def test_fields_are_described() -> None:
    fields = SCHEMA["$defs"]["attention.caramba-plugins-dba:dba"]["properties"]
    meaning = "cached values of the semantic keys; 0 with latent: joint (values a token and layer)"
    assert fields["sem_dim"]["description"] == meaning
    assert fields["k_layout"]["default"] == "shared"


def test_broken_components_are_left_out() -> None:
    """One that does not load costs nothing but itself, and is named."""
    from caramba_core.plugins.metadata import ComponentEntry, Plugin

    entry = ComponentEntry("layer", "gone", "caramba-plugin-gone", "1.0", "caramba_no_such_module:Gone")
    gone = Plugin(name="caramba-plugin-gone", version="1.0", entries=(entry,))
    schema = manifest_schema(Registry({**registry().plugins, gone.name: gone}))
    assert "left out, because they do not load: caramba-plugin-gone:gone" in schema["$comment"]
    assert Draft202012Validator(schema).is_valid(base())
