"""``caramba report`` and ``caramba compare`` on real runs, whole, unfinished, damaged and hostile ones."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from caramba_plugins_dba.module import DecoupledBottleneckModule
from caramba_plugins_report import plugin, speed
from caramba_plugins_report.attending import attention_maps
from caramba_plugins_report.comparing import paired_ratio
from caramba_plugins_report.whole import Whole, read_group
from caramba_plugins_standard.measurement import Measurement
from caramba_plugins_standard.opening import open_run

from caramba_core.run.directory import RunDirectory

Ran = tuple[int, str, str]
Command = Callable[..., Ran]
VOID = {"meta", "br"}


class Page(HTMLParser):
    """What a page holds: its elements with their attributes, its text, and whether every element is closed."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.svg_text: list[str] = []
        self.open: list[str] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            (self.svg_text if "svg" in self.open else self.text).append(data.strip())

    @property
    def words(self) -> str:
        """The text outside of figures, with spaces evened out."""
        return " ".join(" ".join(self.text).split())

    def requires_nothing(self) -> None:
        """No script, no handler, and no address but those of elements of the page."""
        assert {tag for tag, _ in self.elements}.isdisjoint(
            {"script", "link", "img", "iframe", "object", "image", "base"}
        )
        for _, attributes in self.elements:
            for name, value in attributes.items():
                assert not name.startswith("on")
                assert name not in ("src", "srcset", "action", "data", "poster")
                if name.endswith("href"):
                    assert str(value).startswith("#")
                assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)", str(value)))
        style = re.search(r"<style>(.*?)</style>", self.source, re.DOTALL)
        assert style
        assert "url(" not in style[1]
        assert "@import" not in style[1]


def made_of(caramba: Command, *arguments: object, output: Path) -> Page:
    code, _, err = caramba("report", *arguments, "-o", output)
    assert code == 0, err
    page = Page(output)
    page.requires_nothing()
    return page


# ------------------------------------------------------------------------------------------------ whole runs


def test_a_group_is_one_page_with_its_figures(runs: Path, caramba: Command, tmp_path: Path) -> None:
    measured = {"title": "metrics", "columns": ["metric", "value"], "rows": [["agreement.kl", "0.125"]]}
    (runs / "small" / "half" / "finetune" / "eval.json").write_text(json.dumps({"sections": [measured]}))
    page = made_of(caramba, runs / "small" / "half", output=tmp_path / "report.html")
    assert "agreement.kl 0.125" in page.words
    summary = json.loads((runs / "small" / "half" / "finetune" / "summary.json").read_text())
    ratio = summary["perplexity_ratio"]["end"]
    assert f"After finetune, the perplexity on 124 held-out tokens is {ratio:.3f} times the teacher's" in page.words
    assert "95 % interval" in page.words
    assert "at most 9, which is met" in page.words
    for name in ("teacher", "start", "end"):
        error = summary["perplexity_standard_error"][name]
        assert f"{summary['perplexity'][name]:.2f} ± {error:.2f}" in page.words
    for label in (
        *("training loss (nats per token)", "learning rate", "gradient norm", "optimizer step", "held-out perplexity"),
        *("cached bytes per token at a context of 32", "perplexity / teacher's", "error / energy of output"),
    ):
        assert label in page.svg_text
    assert {"convert", "finetune", "teacher"} <= set(page.svg_text)  # the points of the runs are named
    assert "continuing “w1 w2 w3”" in page.words
    say = json.loads((runs / "small" / "half" / "say" / "summary.json").read_text())
    assert say["text"] in page.words
    assert "perplexity_ratio_at_most: 9.0" in page.words  # the manifest
    assert "model.blocks.0.attention" in page.words  # the plan
    assert "embedder" in page.svg_text  # the model's picture
    assert summary["versions"]["torch"] in page.words
    ids = [str(attributes["id"]) for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_every_figure_has_labels_and_words_for_those_who_cannot_see_it(
    runs: Path, caramba: Command, tmp_path: Path
) -> None:
    page = made_of(caramba, runs / "small", output=tmp_path / "report.html")
    figures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(figures) >= 13
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)
    code, _, _ = caramba("report", "small", "-o", tmp_path / "again.html", "--plots", tmp_path / "plots")
    assert code == 0
    files = sorted((tmp_path / "plots").iterdir())
    assert len(files) == len(figures) - 2  # those of the models are drawn by `caramba graph`
    for file in files:
        texts = ["".join(element.itertext()) for element in ET.parse(file).iter("{http://www.w3.org/2000/svg}text")]
        labels = [text for text in texts if re.search("[a-z]{4}", text)]
        assert len(labels) >= 2, file
        assert not any("$" in text for text in texts)
    assert caramba("report", "small", "-o", tmp_path / "again.html", "--plots", tmp_path / "plots")[0] == 2


def test_a_run_without_a_teacher_has_its_own_verdict(runs: Path, caramba: Command, tmp_path: Path) -> None:
    page = made_of(caramba, "teacher/main/pretrain", output=tmp_path / "report.html")
    assert "After pretrain, the perplexity on 124 held-out tokens is" in page.words
    assert "at its start" in page.words


def test_the_verdict_says_that_a_threshold_is_not_met(runs: Path, caramba: Command, tmp_path: Path) -> None:
    manifest = runs / "small" / "half" / "convert" / "manifest.yml"
    manifest.write_text(manifest.read_text().replace("at_most: 9.0", "at_most: 0.5"))
    page = made_of(caramba, runs / "small" / "half", output=tmp_path / "report.html")
    assert "at most 0.5, which is not met" in page.words


# ------------------------------------------------------------------------------------------------ others


def test_unfinished_runs_are_said_to_be_so(runs: Path, caramba: Command, tmp_path: Path) -> None:
    finetune = runs / "small" / "half" / "finetune"
    RunDirectory(finetune).update(status="interrupted", step=4)
    (finetune / "summary.json").unlink()
    page = made_of(caramba, runs / "small" / "half", output=tmp_path / "report.html")
    assert "After convert, the perplexity" in page.words
    assert "Not finished: finetune." in page.words
    page = made_of(caramba, finetune, output=tmp_path / "report.html")
    assert "There is no result yet: finetune is interrupted at step 4." in page.words
    assert "training loss (nats per token)" in page.svg_text


DAMAGES = (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"runs": 3, "model": [1]}', b"[" * 100_000)


@pytest.mark.parametrize(
    "name",
    [
        *("state.json", "summary.json", "plan.json", "calibration.json", "report.json", "manifest.yml"),
        *("metrics.jsonl", "evaluation/end.npy", "evaluation/settings.json"),
    ],
)
def test_damaged_files_leave_a_page(runs: Path, caramba: Command, tmp_path: Path, name: str) -> None:
    """Of damages that leave the same to be drawn, all are read, and the page of the first is made."""
    half, drawn = runs / "small" / "half", list[list[Any]]()
    for damage in DAMAGES:
        for run in ("convert", "finetune"):
            (half / run / name).write_bytes(damage)
        whole = [left(run) for run in read_group([half / run for run in ("convert", "finetune", "say")])]
        if whole not in drawn:
            drawn.append(whole)
            page = made_of(caramba, half, output=tmp_path / "report.html")
            assert "finetune" in page.words


def left(run: Whole) -> Any:
    """What a page is made of, without the words of problems and the time of the last change."""
    measured = {name: one.nll.tolist() for name, one in run.measured.items()}
    info = attrs.evolve(run.info, modified=None)
    found = attrs.evolve(run, measured={}, problems=("damaged",) * len(run.problems), info=info)
    return found, measured


def test_what_stands_in_runs_stays_text(runs: Path, caramba: Command, tmp_path: Path) -> None:
    hostile = "</pre></svg><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac{$ {{ 7 * 7 }}"
    run = runs / "small" / "half" / "say"
    summary = json.loads((run / "summary.json").read_text())
    changes = {
        "text": hostile,
        "device": hostile,
        "dtype": [hostile],
        "versions": {hostile: hostile},
        "seed": {"a": hostile},
    }
    (run / "summary.json").write_text(json.dumps(summary | changes))
    section = {"title": hostile, "columns": [hostile, 3], "rows": [[hostile, 1.5], [None]]}
    (run / "report.json").write_text(json.dumps({"sections": [section, 3, {"columns": 1}]}))
    (run / "manifest.yml").write_text(f"# {hostile}\n")
    notes = {hostile: {"refit": {"before": 0.5, "after": "x"}, "start": {f"{hostile}_lost": 0.25, "y_lost": None}}}
    (run / "calibration.json").write_text(json.dumps(notes))
    named = runs / "small" / "<script>alert(2)<" / "$a$b_{"
    named.parent.mkdir()
    (runs / "small" / "half" / "finetune").rename(named)
    page = made_of(caramba, runs / "small", "--plots", tmp_path / "plots", output=tmp_path / "report.html")
    assert "<script>alert(1)</script>" in page.words
    assert "{{ 7 * 7 }}" in page.words
    assert all(ET.parse(file) for file in (tmp_path / "plots").iterdir())


def test_a_folder_without_runs_and_a_place_that_cannot_be(runs: Path, caramba: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert caramba("report", tmp_path / "empty")[0] == 2
    assert caramba("report", tmp_path / "nothing")[0] == 2
    code, _, err = caramba("report", "small", "-o", tmp_path / "empty")
    assert code == 2
    assert "is a folder" in err


# ------------------------------------------------------------------------------------------------ measured for it


def test_decoding_and_attention_are_measured_where_asked(
    runs: Path, caramba: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_STEPS", 2)
    monkeypatch.setattr(speed, "_TURNS", 2)
    asked = ("--decoding", "24,8", "--attention", "1", "--device", "cpu", "--plots", tmp_path / "plots")
    code, out, err = caramba("report", "small/half", *asked, "--json", "-o", tmp_path / "report.html")
    assert code == 0, err
    decoding = json.loads(out)["groups"][0]["decoding"]
    assert [(one["model"], one["context"], one["cache_bytes"]) for one in decoding] == [
        *(("teacher", 8, 8 * 384), ("finetune", 8, 8 * 264), ("teacher", 24, 24 * 384), ("finetune", 24, 24 * 264)),
    ]
    assert all(one["tokens_per_second"] > 0 for one in decoding)
    page = Page(tmp_path / "report.html")
    page.requires_nothing()
    for label in ("decoded tokens per second", "context (tokens)", "cache of one sequence (MiB)", "probability"):
        assert label in page.svg_text
    for title in ("teacher, mean over heads", "finetune, mean over heads", "teacher, head 0", "finetune, head 1"):
        assert title in page.svg_text
    assert page.svg_text.count("w3") >= 4  # tokens at both axes of both maps
    names = {file.stem for file in (tmp_path / "plots").iterdir()}
    assert {"half_decoding_by_context", "half_model.blocks.1.attention_mean"} <= names


def test_maps_are_what_the_attentions_compute(runs: Path) -> None:
    opened = open_run(runs / "small" / "half" / "finetune", None)
    maps = attention_maps(opened, "blocks.2.attention", "cpu")
    assert maps.attention == "model.blocks.2.attention"
    assert maps.missing == ()
    assert len(maps.tokens) == 32
    for found in maps.maps.values():
        assert found.shape == (2, 32, 32)
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-5)
        assert np.triu(found, 1).max() == 0
    model = opened.model("cpu")
    module: Any = model.get_submodule("blocks.2.attention")
    tokens = torch.from_numpy(opened.heldout_tokens(model.graph, None).read(0, 32))[None]
    x, rows = [], torch.arange(32)
    module.register_forward_pre_hook(lambda _, given: x.append(given[0]))
    with torch.no_grad():
        model(tokens)
        value = module.probabilities(x[0], rows, rows)
    np.testing.assert_allclose(maps.maps["finetune"], value[0].numpy(), atol=1e-6)


def test_what_cannot_be_measured_is_said(
    runs: Path, caramba: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wanted, said in (("3", "there is no attention 3"), ("attention", "3 attentions are named attention")):
        code, _, err = caramba("report", "small/half", "--attention", wanted, "--device", "cpu")
        assert code == 2
        assert said in err
        assert "expected: 0 to 2, or one of: model.blocks.0.attention" in err
    code, _, err = caramba("report", "small/half", "--decoding", "12,few")
    assert code == 2
    assert "--decoding is '12,few'" in err
    page = made_of(caramba, "small/half/say", "--attention", "0", output=tmp_path / "report.html")
    assert "nothing was measured: no finished run has a checkpoint" in page.words
    monkeypatch.delattr(DecoupledBottleneckModule, "probabilities")
    page = made_of(caramba, "small/half/finetune", "--attention", "0", output=tmp_path / "report.html")
    assert "finetune: model.blocks.0.attention" in page.words
    assert "does not tell its probabilities" in page.words
    assert "teacher, mean over heads" in page.svg_text


# ------------------------------------------------------------------------------------------------ behind a run


def test_a_run_leaves_a_page_and_names_it(
    runs: Path, caramba: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    page = Path("runs") / "small" / "half" / "report.html"
    run = ("run", "small.yml", "--group", "half")
    assert "report" not in caramba(*run)[1].splitlines()[-1]  # the tests switch it off
    monkeypatch.delenv("CARAMBA_RUN_REPORT")
    code, out, _ = caramba(*run)
    assert code == 0
    assert out.splitlines()[-1] == f"  report: {page}"
    Page(page).requires_nothing()
    written = page.stat().st_mtime_ns
    assert caramba(*run)[1].splitlines()[-1] == f"  report: {page}"
    assert page.stat().st_mtime_ns == written  # nothing has changed
    page.unlink()
    page.mkdir()
    assert caramba(*run)[0] == 0
    assert f"warning: no report was written to {page}" in caplog.text


def test_the_last_run_of_a_group_leaves_a_page_and_one_that_fails(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CARAMBA_RUN_REPORT")
    group = SimpleNamespace(runs=[SimpleNamespace(id=name) for name in ("convert", "finetune", "say")])
    folder, said = runs / "small" / "half", list[str]()
    contexts: list[Any] = [
        SimpleNamespace(
            run=run, group=group, directory=RunDirectory(folder / run.id), reporter=SimpleNamespace(line=said.append)
        )
        for run in group.runs
    ]
    plugin.run_finished(contexts[1])
    assert not (folder / "report.html").exists()
    plugin.run_finished(contexts[2])
    assert (folder / "report.html").exists()
    (folder / "report.html").unlink()
    (folder / "report.html").mkdir()
    plugin.run_failed(contexts[0])
    assert len(said) == 1
    assert said[0].startswith("warning: no report was written")


# ------------------------------------------------------------------------------------------------ compare


def test_a_comparison_is_a_page(runs: Path, caramba: Command, tmp_path: Path) -> None:
    names = ("small/half/convert", "small/half/finetune", "small/less/finetune")
    code, out, _ = caramba("compare", *names, "--json", "--html", tmp_path / "compare.html")
    assert code == 0
    page = Page(tmp_path / "compare.html")
    page.requires_nothing()
    low, high = json.loads(out)[1]["ratio_interval_95"]
    assert f"[{low:.4f}, {high:.4f}]" in page.words
    assert "2 runs beside half/convert" in page.words
    assert {"perplexity / the first run's", "run", "less/finetune"} <= set(page.svg_text)


def test_differences_are_paired_over_the_same_tokens(runs: Path, caramba: Command) -> None:
    names = ("small/half/convert", "small/half/finetune", "small/less/finetune")
    code, out, _ = caramba("compare", *names, "--json")
    assert code == 0
    first, *others = json.loads(out)
    nll = [np.load(runs / name / "evaluation" / "end.npy").astype(np.float64) for name in names]
    assert first["perplexity"] == pytest.approx(math.exp(nll[0].mean()))
    assert "ratio" not in first
    for other, own in zip(others, nll[1:], strict=True):
        rows = (own - nll[0]).mean(axis=1)  # windows shorter than a block are blocks
        error = rows.std(ddof=1) / math.sqrt(len(rows))
        assert other["log_perplexity_difference"] == pytest.approx(rows.mean())
        assert other["paired_standard_error"] == pytest.approx(error)
        low, high = other["ratio_interval_95"]
        assert math.log(high / low) == pytest.approx(2 * 1.96 * error)
        assert low < other["ratio"] < high
    assert "times the first, 95 % interval" in " ".join(caramba("compare", *names)[1].split())


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draws, hits = np.random.default_rng(0), 0
    for _ in range(400):
        base = draws.normal(3.0, 1.0, (30, 127))
        noise = draws.normal(0.1, 0.3, (30, 127))
        found = paired_ratio(Measurement(nll=base + noise), Measurement(nll=base))
        assert found
        assert found.interval
        hits += found.interval[0] <= math.exp(0.1) <= found.interval[1]
    assert 0.91 < hits / 400 < 0.98


def test_runs_that_cannot_be_paired_are_refused(runs: Path, caramba: Command) -> None:
    assert caramba("compare", "small/half/finetune")[0] == 2
    code, _, err = caramba("compare", "small/half/finetune", "small/half/say")
    assert code == 2
    assert "has no measurement" in err
    note = runs / "small" / "less" / "finetune" / "evaluation" / "settings.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "dtype": "bfloat16"}))
    code, out, _ = caramba("compare", "small/half/finetune", "small/less/finetune")
    assert code == 0
    assert "measured otherwise than the first: dtype bfloat16" in out
    note.write_text(json.dumps({**json.loads(note.read_text()), "tokens": "others"}))
    code, _, err = caramba("compare", "small/half/finetune", "small/less/finetune")
    assert code == 2
    assert "other tokens" in err
    end = runs / "small" / "less" / "finetune" / "evaluation" / "end.npy"
    end.write_bytes(end.read_bytes()[:-3])
    assert caramba("compare", "small/half/finetune", "small/less/finetune")[0] == 2
