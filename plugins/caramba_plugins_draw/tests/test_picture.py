"""Pictures: well-formed, complete, inside their edges, and each repeated block once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from caramba_plugins_draw.canvas import text_width, wrap
from caramba_plugins_draw.layout import Box, ChainBox, FanBox, FrameBox, ResidualBox, arrange
from caramba_plugins_draw.mermaid import mermaid
from caramba_plugins_draw.page import page
from caramba_plugins_draw.sketch import Sketch, sketch
from caramba_plugins_draw.svg import svg

from caramba_core.cli import main
from caramba_core.lowering import lower
from caramba_core.manifest.structure import structure_model
from caramba_core.plan import ModelPlan, plan_model


def residual(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "residual", "layers": list(layers), **more}


def stacked(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "stacked", "layers": list(layers), **more}


def nested(repeat: int, *layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "nested", "repeat": repeat, "layers": list(layers), **more}


GQA = {"type": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 6}
MLP = {"type": "swiglu", "d_ff": 32}
NORM = {"type": "rms_norm"}
LINEAR = {"type": "linear", "d_out": 10}
DBA = {**GQA, "type": "dba", "sem_dim": 4, "geo_dim": 4, "v_dim": 5, "rope": {"theta": 100.0}}
WINDOW = {**GQA, "window": 16}
MODELS: dict[str, list[dict[str, Any]]] = {
    "plain": [residual(NORM, GQA), residual(NORM, MLP), NORM],
    "repeated": [nested(12, residual(NORM, DBA), residual(NORM, MLP)), NORM],
    "each": [nested(3, residual(NORM, DBA), each={"attention.sem_dim": [2, 4, 6]})],
    "hybrid": [nested(6, NORM, GQA, variants=[[NORM, WINDOW, MLP]], order=[0, 0, 0, 1, 1, 0])],
    "alternating": [nested(20, NORM, GQA, variants=[[NORM, MLP]], order=[0, 1] * 10)],
    "windows": [nested(4, NORM, GQA, variants=[[NORM, WINDOW]], order=[0, 1, 1, 0])],
    "caches": [nested(3, NORM, GQA, each={"attention.cache": ["int8", "int8", None]})],
    "named": [stacked(residual(NORM, GQA), name="first"), residual(MLP, name="second")],
    "fan": [{"type": "parallel", "combine": "concatenate", "layers": [residual(NORM, GQA), LINEAR, NORM, MLP]}],
    "fan in fan": [
        {"type": "parallel", "layers": [{"type": "branching", "router": "softmax", "layers": [MLP, NORM]}, GQA]}
    ],
    "recurrent": [{"type": "recurrent", "times": 3, "layers": [nested(2, residual(NORM, GQA))]}],
    "cyclic": [{"type": "cyclic", "times": 5, "layers": [GQA, stacked(NORM, MLP)]}],
}


def plan_of(name: str) -> ModelPlan:
    embedder = {"type": "token", "vocab_size": 40, "d_model": 24}
    model = {"tied_embeddings": False, "embedder": embedder, "topology": stacked(*MODELS[name])}
    return plan_model(lower(structure_model(model)), context=64)


def sketch_of(name: str) -> Sketch:
    return sketch(plan_of(name), f"a <{name}> & more", ("one fact",))


def texts(document: str) -> list[ElementTree.Element]:
    return [element for element in ElementTree.fromstring(document).iter() if element.tag.endswith("}text")]


@pytest.mark.parametrize("name", MODELS)
def test_svg_is_whole_and_inside_its_edges(name: str) -> None:
    document = svg(sketch_of(name))
    root = ElementTree.fromstring(document)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert width >= 1000
    for element in texts(document):
        size, x, y = float(element.attrib["font-size"]), float(element.attrib["x"]), float(element.attrib["y"])
        length = text_width(element.text or "", size, bold="font-weight" in element.attrib)
        start = x - {"middle": length / 2, "end": length}.get(element.attrib.get("text-anchor", ""), 0)
        assert start >= 0, element.text
        assert start + length <= width, element.text
        assert size <= y <= height, element.text


@pytest.mark.parametrize("name", MODELS)
def test_every_name_and_width_is_there(name: str) -> None:
    written = [element.text or "" for element in texts(svg(sketch_of(name)))]
    plan = plan_of(name)
    for node in plan.walk():
        if not node.scopes:
            assert node.local in written
    assert "token ids" in written
    assert "logits" in written
    assert "40" in written  # the width in front of the logits


def test_repeated_blocks_once_with_their_count() -> None:
    document = svg(sketch_of("repeated"))
    written = [element.text or "" for element in texts(document)]
    assert "12 \u00d7" in written
    assert written.count("attention") == 1
    assert "blocks.0\u201311" in written
    assert any("cached bytes per token each" in text for text in written)


def test_sizes_that_differ_are_ranges() -> None:
    written = " ".join(element.text or "" for element in texts(svg(sketch_of("each"))))
    assert "sem_dim 2 \u2013 6" in written
    assert "52 \u2013 68 bytes per token" in written or "\u2013" in written


def test_blocks_of_other_make_stand_apart_in_order() -> None:
    written = [element.text or "" for element in texts(svg(sketch_of("hybrid")))]
    frames = [text for text in written if text.startswith("blocks.")]
    assert frames == ["blocks.0\u20132", "blocks.3\u20134", "blocks.5"]
    many = [element.text or "" for element in texts(svg(sketch_of("alternating")))]
    assert "10 \u00d7" in many
    assert any("in the order of the numbers" in text for text in many)


def test_a_window_is_no_size() -> None:
    written = [element.text or "" for element in texts(svg(sketch_of("windows")))]
    assert [text for text in written if text.startswith("blocks.")] == ["blocks.0", "blocks.1\u20132", "blocks.3"]
    assert sum("of the last 16 tokens" in text for text in written) == 1


def test_caches_are_named_as_they_are_stored() -> None:
    written = [element.text or "" for element in texts(svg(sketch_of("caches")))]
    assert [text for text in written if text.startswith("blocks.")] == ["blocks.0\u20131", "blocks.2"]
    assert " ".join(written).count("in int8") == 2  # keys and values


def boxes_of(box: Box) -> list[Box]:
    if isinstance(box, ChainBox | FanBox):
        return list(box.boxes)
    return [box.inner] if isinstance(box, FrameBox | ResidualBox) else []


@pytest.mark.parametrize("name", MODELS)
def test_boxes_hold_what_is_in_them(name: str) -> None:
    def check(box: Box) -> None:
        inner = boxes_of(box)
        beside = isinstance(box, FanBox)
        widths, heights = [b.width for b in inner], [b.height for b in inner]
        assert box.width >= (sum(widths) if beside else max(widths, default=0))
        assert box.height >= (max(heights, default=0) if beside else sum(heights))
        for each in inner:
            check(each)

    check(arrange(sketch_of(name).chain, 920))


@pytest.mark.parametrize("name", MODELS)
def test_mermaid_is_a_tree_of_closed_subgraphs(name: str) -> None:
    text = mermaid(sketch_of(name))
    assert len(re.findall(r"^\s*subgraph ", text, re.M)) == len(re.findall(r"^\s*end$", text, re.M))
    declared = set(re.findall(r"^\s*(n\d+)[\[(]", text, re.M))
    used = set(re.findall(r"\b(n\d+)\b", " ".join(line for line in text.splitlines() if "-->" in line)))
    assert used == declared
    assert '|"24"|' in text
    edges = [index for index, line in enumerate(text.splitlines()) if "-->" in line]
    nodes = [index for index, line in enumerate(text.splitlines()) if re.match(r"\s*(n\d+[\[(]|subgraph|end$)", line)]
    assert min(edges) > max(nodes)


@pytest.mark.parametrize("name", MODELS)
def test_mermaid_names_nothing_twice(name: str) -> None:
    """A node or subgraph that takes another's identifier replaces it, or closes a circle that does not render."""
    identifiers = []
    for line in mermaid(sketch_of(name)).splitlines():
        opened = re.fullmatch(r'\s*(?:subgraph )?([a-z]\d+)(?:\(\["|\(\(?"|\[)(.*)(?:"\]\)|"\)\)?|\])(?::::\w+)?', line)
        if opened:
            identifiers.append(opened[1])
            assert '"' not in opened[2].strip('"')
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("name", MODELS)
def test_page_holds_picture_and_figures(name: str) -> None:
    text = page(sketch_of(name), plan_of(name))
    assert text.count("<svg") == text.count("</svg>") == 1
    assert f"a &lt;{name}&gt; &amp; more" in text
    assert text.count("<tr>") == text.count("</tr>")
    for node in plan_of(name).walk():
        for weight in node.weights:
            assert weight in text


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for suffix, start in ((".svg", "<svg"), (".mmd", "---"), (".html", "<!doctype html>"), (".SVG", "<svg")):
        path = tmp_path / f"model{suffix}"
        with pytest.raises(SystemExit) as ended:
            main(["graph", "llama32_1b_dba", "-o", str(path)])
        assert ended.value.code == 0
        assert path.read_text(encoding="utf-8").startswith(start)
    for bad in (tmp_path / "model.pdf", tmp_path / "no" / "model.svg", tmp_path / "model"):
        with pytest.raises(SystemExit) as ended:
            main(["graph", "llama32_1b_dba", "-o", str(bad)])
        assert ended.value.code == 2
        assert not bad.exists()
    assert ".svg, .mmd, .html" in capsys.readouterr().err


def test_wrapping() -> None:
    parts = [f"field_{index} {index}" for index in range(20)]
    lines = wrap(parts, " \u00b7 ", 12, 300)
    assert len(lines) == 3
    assert all(text_width(line, 12) <= 300 for line in lines)
    assert lines[-1].endswith("\u2026")
    assert wrap(["short"], ", ", 12, 300) == ["short"]
    assert wrap([], ", ", 12, 300) == []
