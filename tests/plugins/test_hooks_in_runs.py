"""What hooks see of a whole run through the real command, what they may ask for, and what a fault in each does."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caramba_core import hookspecs
from caramba_core.cli import main
from tests.plugins.site import Site

MANIFEST = """
version: 1
name: tiny
model:
  type: transformer
  tied_embeddings: true
  embedder: {type: token, vocab_size: 64, d_model: 16}
  topology:
    type: stacked
    layers:
      - {type: residual, layers: [{type: rms_norm}, {type: gqa, n_heads: 2, n_kv_heads: 1, head_dim: 8}]}
      - {type: rms_norm}
groups:
  - name: main
    data: {train: tokens.npy, heldout: tokens.npy}
    eval: {context: 16, windows: 2}
    runs:
      - id: first
        mode: train
        steps: 6
        train: {strategy: pretrain, device: cpu, lr: 1.0e-2, batch_size: 2, context: 16, evaluate_every: 3}
"""
HEAD = "from caramba_core.hookspecs import Section, hookimpl\nfrom caramba_core.errors import *\n"
FOLDER = Path("runs/tiny/main/first")

Install = Callable[[str], None]


@pytest.fixture
def install(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Installs the hook module of a plugin; the current folder has a manifest with its data."""
    np.save(tmp_path / "tokens.npy", (np.arange(600) % 50).astype("uint16"))
    (tmp_path / "tiny.yml").write_text(MANIFEST)
    monkeypatch.chdir(tmp_path)

    def written(text: str) -> None:
        site.add("caramba-plugin-a", entries={"caramba": {"a": "hooks_a"}}, modules={"hooks_a": HEAD + text})

    return written


def caramba(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def summary() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "summary.json").read_text())
    return found


def status() -> str | None:
    state = FOLDER / "state.json"
    return json.loads(state.read_text())["status"] if state.exists() else None


# -------------------------------------------------------------------------------------------------------- the order


def test_every_hook_is_called_in_its_place(install: Install) -> None:
    names = [name for name, function in vars(hookspecs).items() if hasattr(function, "caramba_spec")]
    hooks = [name for name in names if name not in hookspecs.SECTIONS]
    text = "calls = []\n"
    for name in hooks:
        extra = "step" if name in ("step_finished", "evaluated") else ""
        text += f"@hookimpl\ndef {name}({extra}): calls.append(('{name}', {extra or None}))\n"
    for name, argument in (("plan_sections", "plan"), ("report_sections", "summary"), ("group_sections", "")):
        text += f"@hookimpl\ndef {name}({argument}): calls.append(('{name}', None)); return []\n"
    install(text)
    assert caramba("run", "tiny.yml") == 0
    import hooks_a  # type: ignore[import-not-found]

    expected: list[tuple[str, int | None]] = [("follow", None), ("graph_lowered", None)]
    expected += [("plan_sections", None), ("run_started", None)]
    expected += [("evaluated", 0), ("model_built", None)]
    expected += [("step_finished", step) for step in (1, 2, 3)] + [("evaluated", 3)]
    expected += [("step_finished", step) for step in (4, 5, 6)] + [("evaluated", 6)]
    expected += [("checkpoint_saved", None), ("evaluated", 6), ("report_sections", None)]
    expected += [("run_finished", None), ("group_sections", None), ("report_sections", None)]
    assert hooks_a.calls == expected
    assert {name for name, _ in hooks_a.calls} == {*names} - {"run_failed", "show_plans"}


def test_processes_that_did_not_meet_are_refused(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many must be there as the manifest says, and they must know of each other."""
    install("")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert caramba("run", "tiny.yml") == 2
    assert "2 processes were started (WORLD_SIZE), and RANK, MASTER_ADDR" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert caramba("run", "tiny.yml", "--set", "groups.0.runs.0.train.parallel.data=2") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "train.parallel.data is 2, and one process was started" in said
    assert "torchrun --nproc-per-node 2 -m -- caramba run" in said
    assert not Path("runs").exists()
    assert caramba("run", "tiny.yml", "--dry-run") == 0


# -------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("hook", ["graph_lowered", "plan_sections", "run_started", "model_built"])
@pytest.mark.parametrize("fault", ["ValueError('no luck')", "SystemExit('no luck')"])
def test_a_fault_before_the_first_step(
    install: Install, hook: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install(f"@hookimpl\ndef {hook}(): raise {fault}")
    assert caramba("run", "tiny.yml") == 2
    said = capsys.readouterr().err
    assert f"plugin caramba-plugin-a 1.0 failed in the hook {hook}: {fault.partition('(')[0]}: no luck" in said
    assert "--no-plugin caramba-plugin-a" in said
    if hook in ("graph_lowered", "plan_sections"):
        assert not Path("runs").exists()
    else:
        assert status() == "failed"
        assert not (FOLDER / "summary.json").exists()
    if hook in ("graph_lowered", "plan_sections"):
        assert caramba("compile", "tiny.yml", "--print-plan") == 2
    assert caramba("compile", "tiny.yml") == (2 if hook == "graph_lowered" else 0)


@pytest.mark.parametrize("hook", ["step_finished", "evaluated", "checkpoint_saved", "run_finished", "report_sections"])
def test_a_fault_in_an_observer(install: Install, hook: str, caplog: pytest.LogCaptureFixture) -> None:
    install(f"@hookimpl\ndef {hook}(): raise OSError('no network')")
    with caplog.at_level(logging.WARNING):
        assert caramba("run", "tiny.yml") == 0
    (record,) = (record for record in caplog.records if "hook" in record.getMessage())
    assert f"caramba-plugin-a 1.0 failed in the hook {hook}, which is not called again" in record.getMessage()
    assert status() == "done"
    assert summary()["steps"] == 6


def test_a_fault_while_the_run_fails_already(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install(
        "@hookimpl\ndef step_finished(step):\n    if step == 2: raise NumericalStop('flat')\n"
        "@hookimpl\ndef run_failed(error): raise RuntimeError(f'while {error}')"
    )
    with caplog.at_level(logging.WARNING):
        assert caramba("run", "tiny.yml") == 4  # the first error counts
    assert "failed in the hook run_failed" in caplog.text
    assert "while flat" in caplog.text
    assert status() == "failed"


def test_an_error_that_is_meant_ends_the_run_from_any_observer(install: Install) -> None:
    install("@hookimpl\ndef evaluated(): raise ResourceExhausted('no more')")
    assert caramba("run", "tiny.yml") == 5
    assert status() == "failed"


def test_an_error_behind_the_result_leaves_it_a_result(install: Install) -> None:
    install("@hookimpl\ndef run_finished(): raise NumericalStop('too late')")
    assert caramba("run", "tiny.yml") == 4
    assert status() == "done"
    assert caramba("run", "tiny.yml") == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("'text'", "it gives a str, not a list of caramba_core.hookspecs.Section"),
        ("['text']", "a section is a str"),
        ("[Section(title='t', columns=('a',), rows=((1, 2),))]", "has 1 columns and a row of 2"),
        ("[Section(title='t', columns=('a',), rows=(({},),))]", "has a cell that is a dict"),
    ],
)
def test_sections_that_are_none(install: Install, given: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    install(f"@hookimpl\ndef plan_sections(): return {given}")
    assert caramba("compile", "tiny.yml", "--json") == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "plugin caramba-plugin-a 1.0 failed in the hook plan_sections" in said
    assert message in said


# -------------------------------------------------------------------------------------------------------- sections


def test_sections_of_plans(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(
        "@hookimpl\ndef plan_sections(plan):\n"
        "    rows = ((plan.title, plan.model.total.parameters, None),)\n"
        "    return [Section(title='Prices [a month]', columns=('what', 'cents', 'note'), rows=rows)]"
    )
    assert caramba("compile", "tiny.yml", "--print-plan") == 0
    shown = capsys.readouterr().out
    assert "Prices [a month]" in shown
    assert caramba("compile", "tiny.yml", "--json") == 0
    (plan,) = json.loads(capsys.readouterr().out)
    (section,) = plan["sections"]
    assert section["title"] == "Prices [a month]"
    assert section["columns"] == ["what", "cents", "note"]
    assert section["rows"] == [["tiny/main", plan["model"]["parameters"], None]]
    assert f"{plan['model']['parameters']:,}" in shown
    assert caramba("run", "tiny.yml") == 0
    assert json.loads((FOLDER / "plan.json").read_text())["sections"] == [section]


def test_sections_of_reports(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install(
        "@hookimpl\ndef report_sections(summary):\n"
        "    rows = ((summary['run'], summary['tokens'] * 2),)\n"
        "    return [Section(title='Bill', columns=('run', 'cents'), rows=rows)]"
    )
    assert caramba("run", "tiny.yml") == 0
    shown = capsys.readouterr().out
    assert "first: Bill" in shown
    assert "384" in shown  # 6 steps of 2 x 16 tokens, twice
    written = json.loads((FOLDER / "report.json").read_text())
    assert written == {"sections": [{"title": "Bill", "columns": ["run", "cents"], "rows": [["first", 384]]}]}
    assert caramba("run", "tiny.yml") == 0  # nothing left to do: the report is shown again
    assert "first: Bill" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize(
    ("hook", "steps"),
    [("step_finished(context, step):\n    if step == 2:", 2), ("evaluated(context, step):\n    if step == 3:", 3)],
)
def test_a_stop_that_was_asked_for_is_the_end(
    install: Install, hook: str, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    install(f"@hookimpl\ndef {hook} context.request_stop('enough')")
    assert caramba("run", "tiny.yml", "--set", "groups.0.runs.0.train.checkpoint_every=1") == 0
    taken = summary()["steps"]
    assert taken in (steps, steps + 1)  # numbers are read one step late
    assert status() == "done"
    result = summary()
    assert result["stop_reason"] == "enough"
    assert result["tokens"] == taken * 32
    assert {"start", "end"} <= set(result["perplexity"])
    assert sorted(path.name for path in (FOLDER / "checkpoints").iterdir())[-1] == f"step_{taken:06d}"
    assert f"first ended at step {taken} of 6: enough" in capsys.readouterr().out
    assert caramba("run", "tiny.yml") == 0
    assert "done already" in capsys.readouterr().out


def test_a_time_limit_pauses(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("calls = []\n@hookimpl\ndef run_finished(): calls.append(1)")
    reached = "the time limit of this call was reached"
    measuring = f"{reached}, 1 of 2 windows of the perplexity of start done"
    for step in (f"0: {measuring}", f"0: {reached}", f"1: {reached}"):
        assert caramba("run", "tiny.yml", "--minutes", "0") == 0
        assert status() == "interrupted"
        assert not (FOLDER / "summary.json").exists()
        assert f"first stopped at step {step}; --resume goes on" in capsys.readouterr().out
    assert caramba("run", "tiny.yml", "--resume") == 0
    assert summary()["steps"] == 6
    assert "stop_reason" not in summary()
    import hooks_a

    assert hooks_a.calls == [1]


def test_a_stop_is_remembered_where_the_process_dies_before_the_result(install: Install) -> None:
    install(
        "import os, signal\ndies = [True]\n"
        "@hookimpl\ndef step_finished(context, step):\n    if step == 2: context.request_stop('enough')\n"
        "@hookimpl\ndef evaluated(results):\n"
        "    if dies and 'perplexity_end' in results: dies.clear(); os.kill(os.getpid(), signal.SIGINT)"
    )
    assert caramba("run", "tiny.yml") == 130
    assert status() == "interrupted"
    state = json.loads((next(iter((FOLDER / "checkpoints").iterdir())) / "state.json").read_text())
    assert caramba("run", "tiny.yml", "--resume") == 0
    assert summary()["steps"] == state["step"] < 6
    assert summary()["stop_reason"] == "enough"
