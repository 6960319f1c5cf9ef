"""Plain data to typed configs: strict kinds, shapes, open unions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from caramba_core.components import Attention, component, option
from caramba_core.datasets import Dataset
from caramba_core.errors import Faults, InvalidValue, ManifestError, PluginError
from caramba_core.manifest.structure import Structurer, structure_model
from caramba_core.plugins.registry import Registry


@component
class Inner:
    size: int = option(default=1, help="how large", minimum=1)


@component
class Every:
    integer: int = option(default=0, help="")
    number: float = option(default=0.0, help="", minimum=0.0, below=2.0)
    truth: bool = option(default=False, help="")
    text: str = option(default="", help="", pattern="[a-z]*", form="small letters")
    file: Path | None = option(default=None, help="")
    choice: Literal["a", "b", 1] = option(default="a", help="")
    either: int | str | None = option(default=None, help="")
    one_of: float | Literal["auto"] = option(default="auto", help="")
    items: tuple[int, ...] = option(default=(), help="")
    listed: list[str] = option(factory=list, help="")
    pair: tuple[int, str] = option(default=(0, ""), help="")
    named: Mapping[str, float] = option(factory=dict, help="")
    inner: Inner | None = option(default=None, help="")
    inners: tuple[Inner, ...] = option(default=(), help="")
    anything: Any = option(default=None, help="")
    from_: str | None = option(default=None, help="")
    low: int = option(default=0, help="")
    high: int = option(default=9, help="")

    def __attrs_post_init__(self) -> None:
        if self.low > self.high:
            raise InvalidValue("low", f"{self.low} is above high ({self.high})")


@pytest.fixture
def structurer(example_plugins: Registry) -> Structurer:
    return Structurer(example_plugins)


def faults(structurer: Structurer, data: Any, type_: type = Every) -> list[str]:
    with pytest.raises(Faults) as caught:
        structurer.structure(data, type_)
    return [f"{'.'.join(map(str, fault.path))}: {fault.message}" for fault in caught.value.faults]


def test_every_kind_of_field(structurer: Structurer) -> None:
    made = structurer.structure(
        {
            "integer": 3, "number": 1, "truth": True, "text": "abc", "file": "a/b", "choice": 1, "either": "x",
            "one_of": 2, "items": [1, 2], "listed": ["a"], "pair": [1, "b"], "named": {"a": 1}, "inner": {"size": 4},
            "inners": [{}, {"size": 2}], "anything": [{"a": None}], "from": "there",
        },
        Every,
    )  # fmt: skip
    assert made == Every(
        integer=3, number=1.0, truth=True, text="abc", file=Path("a/b"), choice=1, either="x", one_of=2.0, items=(1, 2),
        listed=["a"], pair=(1, "b"), named={"a": 1.0}, inner=Inner(size=4), inners=(Inner(), Inner(size=2)),
        anything=[{"a": None}], from_="there",
    )  # fmt: skip
    assert type(made.number) is float and type(made.one_of) is float


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("integer", "3", "expected an integer, found the string '3'"),
        ("integer", 2.7, "expected an integer, found the number 2.7"),
        ("integer", 2.0, "expected an integer, found the number 2.0"),
        ("integer", True, "expected an integer, found true"),
        ("integer", None, "expected an integer, found null"),
        ("integer", [], "expected an integer, found an empty list"),
        ("number", "1.5", "expected a number, found the string '1.5'"),
        ("number", float("nan"), "expected a finite number, found the number nan"),
        ("number", False, "expected a number, found false"),
        ("number", -1, "-1.0 is below 0.0"),
        ("number", 2, "2.0 is not below 2.0"),
        ("truth", "no", "expected true or false, found the string 'no'"),
        ("truth", 1, "expected true or false, found the integer 1"),
        ("text", 5, "expected a string, found the integer 5"),
        ("text", "ABC", "'ABC' is not of the right form"),
        ("file", 5, "expected a string, found the integer 5"),
        ("choice", "c", "expected 'a' or 'b' or 1, found the string 'c'"),
        ("choice", True, "expected 'a' or 'b' or 1, found true"),
        ("choice", 1.0, "expected 'a' or 'b' or 1, found the number 1.0"),
        ("either", 1.5, "expected an integer or a string or null, found the number 1.5"),
        ("one_of", "high", "expected a number or 'auto', found the string 'high'"),
        ("items", 5, "expected a list, found the integer 5"),
        ("items", {"a": 1}, "expected a list, found a mapping"),
        ("pair", [1], "expected a list of 2 items, found a list of 1 item"),
        ("named", [1], "expected a mapping, found a list of 1 item"),
        ("inner", "x", "expected a mapping, found the string 'x'"),
        ("inner", [1], "expected a mapping, found a list of 1 item"),
    ],
)
def test_what_does_not_fit(structurer: Structurer, key: str, value: object, message: str) -> None:
    assert faults(structurer, {key: value}) == [f"{key}: {message}"]


def test_everything_wrong_is_found_at_once(structurer: Structurer) -> None:
    data = {
        "integer": "x", "number": 5.0, "items": [1, "a", 2.5], "pair": ["a", 1], "named": {"a": 1, "b": "c"},
        "inners": [{"size": 0}, {"sise": 1}, 3], "inner": {"size": 0, "colour": 1}, "unknown_key": 1,
    }  # fmt: skip
    assert faults(structurer, data) == [
        "unknown_key: unknown key 'unknown_key'",
        "integer: expected an integer, found the string 'x'",
        "number: 5.0 is not below 2.0",
        "items.1: expected an integer, found the string 'a'",
        "items.2: expected an integer, found the number 2.5",
        "pair.0: expected an integer, found the string 'a'",
        "pair.1: expected a string, found the integer 1",
        "named.b: expected a number, found the string 'c'",
        "inner.colour: unknown key 'colour'",
        "inner.size: 0 is below 1",
        "inners.0.size: 0 is below 1",
        "inners.1.sise: unknown key 'sise', did you mean 'size'?",
        "inners.2: expected a mapping, found the integer 3",
    ]


def test_rules_between_fields(structurer: Structurer) -> None:
    assert faults(structurer, {"low": 5, "high": 3}) == ["low: 5 is above high (3)"]


def test_a_bare_name_is_short_for_a_type(structurer: Structurer) -> None:
    array: Any = structurer.structure("a/b.npy", Dataset)
    text: Any = structurer.structure("b.txt", Dataset)
    assert (type(array).__name__, array.path) == ("Array", "a/b.npy")
    assert (type(text).__name__, text.path) == ("Text", "b.txt")
    assert "there is no dataset 'b.csv'" in faults(structurer, "b.csv", Dataset)[0]


def test_a_field_may_ask_for_less_than_all_of_a_kind(structurer: Structurer) -> None:
    @component
    class Windowed(Attention):
        kind: ClassVar[str] = "attention"

    grouped = {"type": "gqa", "n_heads": 2, "n_kv_heads": 1, "head_dim": 4}
    assert faults(structurer, grouped, Windowed) == ["type: 'gqa' cannot stand here"]


def test_one_object_becomes_one_config(structurer: Structurer) -> None:
    shared = {"size": 3}
    made = structurer.structure({"inners": [shared, shared, {"size": 3}]}, Every)
    assert made.inners[0] is made.inners[1]
    assert made.inners[0] == made.inners[2]


def test_a_field_that_no_manifest_can_hold(structurer: Structurer) -> None:
    @component
    class Odd:
        field: complex = option(default=0j, help="")

    with pytest.raises(PluginError, match="complex"):
        structurer.structure({"field": 1}, Odd)


def test_a_field_whose_type_is_not_imported(structurer: Structurer) -> None:
    @component
    class Odd:
        field: Nowhere = option(default=0, help="")  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(PluginError, match="Nowhere"):
        structurer.structure({"field": 1}, Odd)


def test_a_model_from_plain_data(example_plugins: Registry) -> None:
    model = {
        "embedder": {"type": "token", "vocab_size": 5, "d_model": 4},
        "topology": {"type": "stacked", "layers": ["rms_norm"]},
    }
    assert structure_model(model).embedder.vocab_size == 5
    with pytest.raises(ManifestError) as caught:
        structure_model({**model, "topology": {"type": "stacked", "layers": [3]}}, origin="teacher/config.json")
    assert str(caught.value) == (
        "teacher/config.json: error: model.topology.layers.0: "
        "expected a layer or attention or topology (a mapping with type:), found the integer 3"
    )
