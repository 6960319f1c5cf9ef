"""``caramba doctor``: what it finds, in words that fit a terminal and as data."""

from __future__ import annotations

import json

import attrs
import pytest
from caramba_plugins_tools import doctor
from caramba_plugins_tools.extras import Extra

from caramba_core.cli import main
from caramba_core.errors import PluginError
from caramba_core.plugins.registry import Registry, registry


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_what_is_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices' worth of work is made short; the rest is as it is."""
    monkeypatch.setattr(doctor, "_SECONDS", 0.001)
    monkeypatch.setattr(doctor, "_SIDES", {"cpu": 64, "mps": 64, "cuda": 64})
    monkeypatch.setattr(doctor, "_COPIED", {"cpu": 4096, "mps": 4096, "cuda": 4096})
    assert run("--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert {"python", "torch", "caramba", "system"} == data["versions"].keys()
    assert {"caramba", "caramba-core", "caramba-document", "caramba-plugins-dba"} <= {
        one["name"] for one in data["distributions"]
    }
    device = data["devices"][0]
    assert device["kind"] == "cpu" and device["memory"] > 0
    assert device["copy"] > 0 and all(rate > 0 for rate in device["matmul"].values())
    assert data["problems"] == []


def test_without_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no-measure") == 0
    said = capsys.readouterr().out
    assert "FLOP/s" not in said
    assert "device: auto takes" in said
    assert "no problem: every plugin loads" in said


def test_a_plugin_that_fails_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    load = Registry.load

    def failing(self: Registry, entry: object) -> object:
        if getattr(entry, "name", "") == "mla":
            raise PluginError("attention mla is broken: its module is gone", hint="pip install it again")
        return load(self, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(Registry, "load", failing)
    monkeypatch.setattr("caramba_core.plugins.record.note", lambda *_: None)
    try:
        assert run("--no-measure") == 2
    finally:
        registry.cache_clear()
    said = capsys.readouterr().out
    assert "caramba-plugins-mla" in said and "broken" in said
    assert (
        "  caramba-plugins-mla: attention mla is broken: its module is gone\n      hint: pip install it again" in said
    )


def test_extras_and_devices_in_words() -> None:
    device = doctor.Device(
        kind="cuda:0",
        name="NVIDIA Something With A Long Name",
        memory=139 << 30,
        matmul={"bfloat16": 7.9e14},
        copy=4.1e12,
    )
    found = doctor.Found(
        versions={"caramba": "1", "python": "3", "torch": "2", "system": "Linux"},
        distributions={"caramba-core": ("1", "ok")},
        devices=(device,),
        chosen="cuda",
        extras=(Extra(distribution="caramba-plugins-some", name="all", missing=("one", "two")),),
        problems=(),
    )
    said = list(doctor.lines(found))
    assert "  cuda:0  NVIDIA Something With A Long Name, 139 GiB" in said
    assert "          matrix products 790 TFLOP/s in bfloat16" in said
    assert "          copies 4.1 TB/s read and written" in said
    assert "  pip install 'caramba-plugins-some[all]'" in said and "      brings one, two" in said
    assert doctor.as_data(attrs.evolve(found, devices=()))["missing_extras"][0]["missing"] == ["one", "two"]
    assert all(len(line) < 80 for line in said)
