"""Mode ``eval`` and its thresholds, in manifests and on the command line; what stays in a run's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from caramba_core.nn import build

RUN = "runs/small/half/convert"
MEASURED = "runs/small/half/measure"
METRICS = "groups.half.runs.measure.metrics"
VERIFY = "groups.half.runs.measure.verify"
QUICK = ("--metric", "agreement", "--device", "cpu")
Caramba = Callable[..., tuple[int, str, str]]


def summary_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "summary.json").read_text())
    return found


def values(figures: dict[str, Any], of: str = "") -> dict[str, float]:
    return {name: figure["value"] for name, figure in figures.items() if name.startswith(of)}


@pytest.fixture
def again(caramba: Caramba, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """The evaluation anew, of a copy of the runs, with ``--set``."""
    shutil.copytree("runs", tmp_path / "runs")

    def run(*changes: str, options: tuple[str, ...] = ("--again",)) -> tuple[int, str, str]:
        sets = [part for change in changes for part in ("--set", change)]
        return caramba(
            *("run", "manifest.yml", "--run", "measure", "--output", tmp_path / "runs", *options, *sets),
        )

    return run


def test_a_run_measures_metrics(made: Path, caramba: Caramba) -> None:
    summary = summary_of(MEASURED)
    names = ["agreement.kl", "agreement.top1", "agreement.ratio", "perplexity.16", "perplexity.64", "passkey.200"]
    assert list(summary["metrics"]) == names
    assert summary["metrics"]["agreement.kl"]["unit"] == "nats"
    assert summary["perplexity"]["end"] > 0  # as around every run
    section = json.loads((made / MEASURED / "report.json").read_text())["sections"][0]
    assert section["columns"] == ["metric", "value", "95 % interval", "unit"]
    assert [row[0] for row in section["rows"]] == names
    code, out, err = caramba("eval", RUN, *QUICK, "--json")
    assert code == 0, err
    assert values(json.loads(out)["metrics"]) == pytest.approx(values(summary["metrics"], "agreement"))


@pytest.mark.parametrize(
    ("bounds", "missed"),
    [
        ("{at_most: {agreement.kl: 1.0e-9}}", "agreement.kl at most 1e-09 (found"),
        ("{at_least: {passkey.200: 1.0, agreement.top1: 0}}", "passkey.200 at least 1 (found 0.0)"),
        ("{perplexity_ratio_at_most: 1.0e-3}", "perplexity_ratio at most 0.001 (found"),
    ],
)
def test_a_threshold_that_is_missed(made: Path, caramba: Caramba, again: Caramba, bounds: str, missed: str) -> None:
    """It needs no work anew: the results are there."""
    code, out, err = again(f"{VERIFY}={bounds}", options=())
    assert code == 3, err
    assert f"error: run measure misses {missed}" in err
    assert err.count("misses") == 1
    assert "agreement.kl" in out  # the results are shown all the same


def test_thresholds_of_the_command(caramba: Caramba) -> None:
    code, _, err = caramba("eval", RUN, *QUICK, "--at-most", "agreement.kl=1e-9", "--at-least", "agreement.top1=0")
    assert code == 3
    assert "error: runs/small/half/convert misses agreement.kl at most 1e-09 (found" in err
    code, out, _ = caramba("eval", RUN, *QUICK, "--at-most", "agreement.kl=1e-9", "--json")
    assert code == 3
    (judged,) = json.loads(out)["verify"]
    assert judged["threshold"] == "agreement.kl at most 1e-09"
    assert not judged["met"]
    assert caramba("eval", RUN, *QUICK, "--at-least", "agreement.kl=0")[0] == 0


def test_several_texts_have_figures_of_their_own_a_mean_and_a_worst(caramba: Caramba) -> None:
    few = ("--context", "16", "--windows", "4", "--device", "cpu", "--json")
    metrics = ("--metric", "agreement", "--metric", "perplexity", "--metric", "memory")
    alone = {}
    for text in ("train", "heldout"):
        code, out, err = caramba("eval", RUN, *metrics, *few, "--data", f"{text}.txt")
        assert code == 0, err
        alone[text] = values(json.loads(out)["metrics"])
    code, out, err = caramba("eval", RUN, *metrics, *few, "--data", "train.txt", "--data", "heldout.txt")
    assert all(
        f"{metric} of {text}: 100%" in err for metric in ("perplexity", "agreement") for text in ("train", "heldout")
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["data"] == "train.txt, heldout.txt"
    both = values(found["metrics"])
    assert {"memory.weights", "perplexity.16@worst", "agreement.ratio@mean"} < both.keys()
    for name in ("agreement.kl", "agreement.top1", "agreement.ratio", "perplexity.16"):
        ones = [alone[text][name] for text in alone]
        assert [both[f"{name}@{text}"] for text in alone] == pytest.approx(ones)
        geometric = name in ("agreement.ratio", "perplexity.16")
        assert both[f"{name}@mean"] == pytest.approx((ones[0] * ones[1]) ** 0.5 if geometric else sum(ones) / 2)
        assert both[f"{name}@worst"] == pytest.approx((min if name == "agreement.top1" else max)(ones))


def test_a_manifest_measures_several_texts_as_the_command_does(caramba: Caramba) -> None:
    """Figures of each, their mean and the worst; runs find them from their own folder, and others read the first."""
    text = Path("manifest.yml").read_text()
    parts = "{type: texts, parts: {train: train.txt, heldout: heldout.txt}}"
    text = text.replace("heldout: heldout.txt", f"heldout: {parts}").replace(
        "{windows: 4, context: 32}", "{windows: 4}"
    )
    text = text.replace("eval: {windows: 4}", "eval: {windows: 4, context: 16}").replace("name: small", "name: several")
    bounds = "at_least: {agreement.top1@worst: 0.0, agreement.ratio@heldout: 2.0}}"
    text = text.replace("at_least: {agreement.top1: 0.0}, at_most: {perplexity.16: 1.0e+9}}", bounds)
    Path("several.yml").write_text(text)
    code, out, err = caramba("run", "several.yml", "--output", "runs")
    assert code == 3 and "agreement.ratio@heldout" in out + err, err  # the bound that is missed
    summary = json.loads(Path("runs/several/half/measure/summary.json").read_text())
    found = {name: figure for name, figure in values(summary["metrics"]).items() if name.startswith("agreement")}
    few = ("--context", "16", "--windows", "4", "--device", "cpu", "--json", "--metric", "agreement")
    run = "runs/several/half/convert"
    code, out, err = caramba("eval", run, *few, "--data", "train.txt", "--data", "heldout.txt")
    assert code == 0, err
    assert found == pytest.approx(values(json.loads(out)["metrics"]))
    assert {name.partition("@")[2] for name in found} == {"train", "heldout", "mean", "worst"}
    code, out, err = caramba("eval", run, *few)  # on what the run was measured on
    assert code == 0, err
    assert found == pytest.approx(values(json.loads(out)["metrics"]))
    code, out, err = caramba("eval", run, *few[:-2], "--metric", "perplexity", "--data", "train.txt")
    alone = values(json.loads(out)["metrics"])["perplexity.16"]
    assert summary["perplexity"]["end"] == pytest.approx(alone)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{train: train.txt, heldout: {type: texts, parts: {}}}", "there is no text"),
        ("{train: train.txt, heldout: {type: texts, parts: {mean: train.txt}}}", "'mean' cannot be the name of a text"),
        ("{train: {type: texts, parts: {a: train.txt}}, heldout: heldout.txt}", "data.train holds texts to measure on"),
        (
            "{train: train.txt, heldout: {type: texts, parts: {a: train.txt, b: heldout.txt}}}",
            "there is no figure 'perplexity.16', did you mean 'perplexity.16@a'",
        ),
    ],
)
def test_texts_that_cannot_be_measured_on(caramba: Caramba, data: str, said: str) -> None:
    text = Path("manifest.yml").read_text()
    Path("wrong.yml").write_text(text.replace("{train: train.txt, heldout: heldout.txt}", data))
    code, _, err = caramba("run", "wrong.yml", "--output", "wrong", "--dry-run")
    assert code == 2 and said in " ".join(err.split()), err


def test_thresholds_over_several_texts(caramba: Caramba) -> None:
    texts = (*QUICK, "--context", "16", "--windows", "4", "--data", "train.txt", "--data", "heldout.txt")
    assert caramba("eval", RUN, *texts, "--at-least", "agreement.kl@worst=0")[0] == 0
    code, _, err = caramba("eval", RUN, *texts, "--at-most", "agreement.kl@train=1e-9")
    assert (code, "misses agreement.kl@train at most 1e-09" in err) == (3, True)
    code, _, err = caramba("eval", RUN, *texts, "--at-most", "agreement.kl=1")
    assert (code, "there is no figure 'agreement.kl'" in err) == (2, True)
    code, _, err = caramba("eval", RUN, *QUICK, "--data", "train.txt", "--data", "./train.txt")
    assert (code, "there is a text train already" in err) == (2, True)


def test_figures_stay_in_the_run_s_folder(caramba: Caramba) -> None:
    file = Path(RUN) / "eval.json"
    file.unlink(missing_ok=True)
    assert caramba("eval", RUN, *QUICK)[0] == 0
    first = json.loads(file.read_text())
    assert caramba("eval", RUN, "--metric", "perplexity", "--data", "train.txt", "--context", 16)[0] == 0
    both = json.loads(file.read_text())
    assert list(both["metrics"]) == ["agreement.kl", "agreement.top1", "agreement.ratio", "perplexity.16"]
    assert both["metrics"]["agreement.kl"] == first["metrics"]["agreement.kl"]
    assert both["measured"]["perplexity"]["data"] == "train.txt"
    assert caramba("eval", RUN, "--metric", "perplexity", "--context", 32, "--windows", 2)[0] == 0
    assert list(json.loads(file.read_text())["metrics"]) == [
        "agreement.kl",
        "agreement.top1",
        "agreement.ratio",
        "perplexity.32",
    ]
    (section,) = json.loads(file.read_text())["sections"]
    assert section["rows"][-1][:1] == ["perplexity.32"]
    file.write_text("{")
    code, _, err = caramba("eval", RUN, *QUICK)
    assert code == 2
    assert "eval.json is damaged" in err
    file.unlink()


def test_what_is_printed_is_a_table(caramba: Caramba) -> None:
    code, out, _ = caramba("eval", RUN, "--device", "cpu")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines() if "." in line and not line.startswith("runs/")]
    assert names == [
        "perplexity.32",
        "agreement.kl",
        "agreement.top1",
        "agreement.ratio",
        "memory.weights",
        "memory.cache.32",
    ]


def test_a_call_that_ends_midway_goes_on_behind_the_last_metric(
    again: Caramba, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    original = build.load_object

    def noting(path: str) -> Any:
        measured.extend({path.rpartition(":")[2]} & {"agreement", "perplexity", "retrieval"})
        return original(path)

    monkeypatch.setattr(build, "load_object", noting)
    options = ("--minutes", "0", "--again")
    for _ in range(8):
        code, _, err = again(options=options)
        assert code == 0, err
        if json.loads((tmp_path / "runs/small/half/measure/state.json").read_text())["results"] is not None:
            break
        options = ("--minutes", "0", "--resume")
    assert measured == ["agreement", "perplexity", "retrieval"]
    assert again(options=("--resume",))[0] == 0
    assert measured == ["agreement", "perplexity", "retrieval"]
    expected = values(summary_of(MEASURED)["metrics"])
    assert values(summary_of(str(tmp_path / "runs/small/half/measure"))["metrics"]) == pytest.approx(expected)


BAD = {
    "no such metric": ((f"{METRICS}=[agrement]",), "there is no metric 'agrement', did you mean 'agreement'?"),
    "a setting that is none": ((f"{METRICS}=[{{type: passkey, lengths: [9]}}]",), "unknown key 'lengths' of passkey"),
    "a context that is none": (
        (f"{METRICS}=[{{type: perplexity, contexts: [1, 16]}}]",),
        "[1, 16] are no contexts",
    ),
    "a figure that none gives": (
        (f"{VERIFY}={{at_most: {{agreement.lk: 1.0}}}}",),
        "there is no figure 'agreement.lk', did you mean 'agreement.kl'?",
    ),
    "two of one name": (
        (f"{METRICS}=[agreement, {{type: agreement, context: 16}}]",),
        "metric 0 is called agreement, too",
    ),
    "a text that is shorter than the context": (
        (f"{METRICS}=[{{type: perplexity, contexts: [16, 4096], extrapolate: true}}]", f"{VERIFY}=null"),
        "tokens, too few to measure on",
    ),
    "a context beyond the model's": (
        (f"{METRICS}=[{{type: agreement, context: 300}}]", f"{VERIFY}=null"),
        "agreement: a context of 300 is beyond the 256 that run measure is made for",
    ),
    "prompts that do not fit": (
        (f"{METRICS}=[{{type: passkey, contexts: [64]}}]", f"{VERIFY}=null"),
        "passkey: prompts do not fit in 64 tokens",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_measured(again: Caramba, what: str) -> None:
    changes, said = BAD[what]
    code, _, err = again(*changes)
    assert code == 2, err
    assert said in err


ALONE = """\
version: 1
name: alone
model:
  type: transformer
  embedder: {type: token, vocab_size: 50, d_model: 16}
  topology: {type: stacked, layers: [rms_norm]}
groups:
  - name: main
    data: {train: tokens.npy, heldout: tokens.npy}
    runs:
      - {id: train, mode: train, steps: 0, train: {strategy: pretrain, lr: 1.0e-3}}
      - {id: measure, mode: eval, metrics: [memory, agreement]}
"""


def test_a_metric_that_compares_needs_a_teacher(caramba: Caramba, tmp_path: Path) -> None:
    (tmp_path / "alone.yml").write_text(ALONE)
    code, _, err = caramba("compile", tmp_path / "alone.yml")
    assert code == 2
    assert "12:53: error: groups.0.runs.1.metrics.1: agreement needs a teacher, and the group has no teacher" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("teacher", "--metric", "agreement", "--data", "heldout.txt"),
            "agreement compares with a teacher, and teacher",
        ),
        (("teacher", "--metric", "perplexity"), "perplexity is measured on a text, and there is none"),
        ((RUN, "--metric", "perplxity"), "there is no metric 'perplxity', did you mean 'perplexity'?"),
        ((RUN, "--metric", "perplexity", "--set", "perplexity.context=[3]"), "unknown key 'context' of perplexity"),
        ((RUN, "--metric", "perplexity", "--set", "passkey.prompts=3"), "'passkey' is not measured"),
        ((RUN, "--metric", "perplexity", "--context", "300"), "beyond the 256 that"),
        ((RUN, "--metric", "perplexity", "--windows", "99999"), "too few to measure on"),
        ((RUN, "--metric", "rolling", "--context", "300"), "rolling: a context of 300 is beyond"),
        ((RUN, "--metric", "position", "--set", "position.buckets=40"), "has no 40 parts"),
        ((RUN, "--at-most", "agreement.lk=1"), "--at-most: there is no figure 'agreement.lk', did you mean"),
        ((RUN, "--at-most", "agreement.kl"), "--at-most agreement.kl sets no threshold"),
        ((RUN, "--data", "nothing.txt"), "nothing.txt does not exist"),
        (("teacher", "--step", "3"), "teacher is no run's folder, and has no checkpoint of step 3"),
        ((RUN, "--cache", "int3"), "there is no cache 'int3'"),
    ],
)
def test_what_the_command_refuses(caramba: Caramba, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = caramba("eval", *arguments)
    assert code == 2, err
    assert said in err
    assert not out


def test_metrics_come_by_entry_points(caramba: Caramba) -> None:
    code, out, _ = caramba("explain", "passkey")
    assert code == 0
    assert "prompts" in out
    listed = json.loads(caramba("plugins", "list", "--json")[1])["plugins"]
    (own,) = (one for one in listed if one["distribution"] == "caramba-plugins-eval")
    assert own["components"]["metric"] == [
        *("agreement", "latency", "memory", "passkey", "perplexity", "position", "retrieval", "rolling"),
    ]
