"""``caramba runs``: the table, one run, what differs, and removing."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from caramba_plugins_report.completion import folders_of_runs, run_folders
from caramba_plugins_report.differences import of_results, of_settings

from caramba_core.run.directory import RunDirectory

Ran = tuple[int, str, str]
Command = Callable[..., Ran]

COUNTED = """
import json, os, sys
root, opened = os.path.abspath(sys.argv[1]), []
def look(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and os.path.abspath(arguments[0]).startswith(root):
        opened.append(os.path.relpath(arguments[0], root))
sys.addaudithook(look)
from caramba_core.cli import main
try:
    main(["runs", "list", root, "--sort", "ratio"])
except SystemExit as ended:
    assert not ended.code
heavy = [name for name in ("torch", "numpy", "rich.table", "jinja2", "matplotlib") if name in sys.modules]
print(json.dumps({"opened": opened, "heavy": heavy}), file=sys.stderr)
"""


def statuses(caramba: Command, *arguments: object) -> dict[str, str]:
    code, out, _ = caramba("runs", "list", *arguments, "--json")
    assert code == 0
    return {f"{run['group']}/{run['run']}": run["status"] for run in json.loads(out)}


def test_what_a_shell_is_offered(runs: Path) -> None:
    """Names below ``runs``, with that folder in front where the user writes it."""
    assert {"small/half/convert", "small/half/finetune"} <= set(run_folders({}, "small/half/"))
    assert list(run_folders({}, "runs/small/half/conv")) == ["runs/small/half/convert"]
    assert list(folders_of_runs({}, "small/ha"))[:2] == ["small/half", "small/half/convert"]
    assert list(folders_of_runs({}, "nobody")) == []


# ------------------------------------------------------------------------------------------------ list and show


def test_the_table_says_what_summaries_say(runs: Path, caramba: Command) -> None:
    code, out, _ = caramba("runs", "list")
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split() == ["run", "status", "step", "loss", "perplexity", "ratio", "B/token", "age"]
    assert caramba("runs", "list", "--sort", "size")[1].splitlines()[0].endswith("size")
    assert len(lines) == 7
    summary = json.loads((runs / "small" / "half" / "finetune" / "summary.json").read_text())
    line = next(line.split() for line in lines if line.startswith("small/half/finetune"))
    metrics = [json.loads(each) for each in (runs / "small/half/finetune/metrics.jsonl").read_text().splitlines()]
    loss = [each["loss"] for each in metrics if "loss" in each][-1]
    assert line[1:6] == [
        *("done", "6", f"{loss:.3f}", f"{summary['perplexity']['end']:.2f}"),
        f"{summary['perplexity_ratio']['end']:.3f}",
    ]


def test_the_table_fits_80_columns_and_a_pipe_gets_whole_names(
    runs: Path, caramba: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = runs / "an_experiment_with_a_name_of_some_length" / "a_group" / "a_run"
    shutil.copytree(runs / "small" / "half" / "finetune", long)
    monkeypatch.setenv("COLUMNS", "80")
    lines = caramba("runs", "list")[1].splitlines()
    assert max(map(len, lines)) <= 80
    assert any("…" in line and "a_run " in line for line in lines)
    monkeypatch.delenv("COLUMNS")
    assert f"{long.relative_to(runs)}  done" in caramba("runs", "list")[1]


def test_runs_are_sorted_and_filtered(runs: Path, caramba: Command) -> None:
    ratios = [run["ratio"] for run in json.loads(caramba("runs", "list", runs, "--sort=-ratio", "--json")[1])]
    known = [ratio for ratio in ratios if ratio is not None]
    assert known == sorted(known, reverse=True)
    assert set(ratios[len(known) :]) == {None}  # runs without a teacher, or that measure nothing
    assert len(known) > 1
    sizes = [run["size_bytes"] for run in json.loads(caramba("runs", "list", "--sort", "size", "--json")[1])]
    assert sizes == sorted(sizes)
    assert sizes[0] > 0
    assert "no runs under runs are failed" in caramba("runs", "list", "--status", "failed")[1]
    code, _, err = caramba("runs", "list", "--sort", "color")
    assert code == 2
    assert "expected: name, status, step" in err
    assert caramba("runs", "list", "nowhere")[0] == 2


def test_a_matrix_is_one_table_of_what_varies(runs: Path, caramba: Command) -> None:
    head, *lines = caramba("runs", "list", "--settings", "--name", "small/*")[1].splitlines()
    assert head.split() == ["run", "v_dim", "seed", "status", "perplexity", "ratio", "B/token"]
    rows = {line.split()[0]: line.split() for line in lines}
    assert rows["small/half/finetune"][1:4] == ["10", "1", "done"]
    assert rows["small/less/finetune"][1:4] == ["4", "2", "done"]
    assert rows["small/less/convert"][1:3] == ["4", "done"]
    data = json.loads(caramba("runs", "list", "--settings", "--name", "*/finetune", "--json")[1])
    assert [one["settings"] for one in data] == [{"v_dim": 10, "seed": 1}, {"v_dim": 4, "seed": 2}]
    assert "no runs under runs with a name like x/*" in caramba("runs", "list", "--name", "x/*")[1]


def test_a_thousand_runs_cost_three_small_files_each_and_no_large_library(made: Path, tmp_path: Path) -> None:
    source = made / "runs" / "small" / "half" / "finetune"
    for number in range(1000):
        run = tmp_path / "runs" / f"name{number // 100}" / f"group{number // 10 % 10}" / f"run{number % 10}"
        run.mkdir(parents=True)
        for name in ("manifest.yml", "state.json", "summary.json", "metrics.jsonl", "plan.json", "lock"):
            os.link(source / name, run / name)
    ran = subprocess.run(
        [sys.executable, "-c", COUNTED, str(tmp_path / "runs")], capture_output=True, text=True, check=True
    )
    assert len(ran.stdout.splitlines()) == 1001
    said = json.loads(ran.stderr)
    assert said["heavy"] == []
    assert len(said["opened"]) == 3000
    assert {Path(name).name for name in said["opened"]} == {"state.json", "summary.json", "metrics.jsonl"}


def test_runs_that_are_not_whole_are_said_to_be_so(runs: Path, caramba: Command) -> None:
    half = runs / "small" / "half"
    (half / "convert" / "summary.json").write_text('{"perplexity": {"end": 3')
    (half / "finetune" / "state.json").write_bytes(b"\xff\x00")
    directory = RunDirectory(half / "say")
    directory.update(status="running")
    (half / "say" / "summary.json").unlink()
    less = runs / "small" / "less"
    RunDirectory(less / "finetune").update(status="failed", error="a NaN")
    found = statuses(caramba, runs / "small")
    half_is = {"half/convert": "damaged", "half/finetune": "damaged", "half/say": "killed"}
    assert found == half_is | {"less/convert": "done", "less/finetune": "failed", "less/say": "done"}
    with (half / "say" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert statuses(caramba, half)["half/say"] == "running"
    code, out, _ = caramba("runs", "show", "small/less/finetune")
    assert code == 0
    assert "problem" in out
    assert "a NaN" in out
    code, out, _ = caramba("runs", "show", half / "convert")
    assert code == 0
    assert "summary.json is damaged" in out


@pytest.mark.parametrize(
    "damage", ["[]", "{}", '{"perplexity": 3}', '{"perplexity": {"end": "x"}, "perplexity_ratio": [1]}', "null", "nan"]
)
def test_a_summary_of_any_form_leaves_the_table_whole(runs: Path, caramba: Command, damage: str) -> None:
    run = runs / "small" / "half" / "finetune"
    (run / "summary.json").write_text(damage)
    (run / "metrics.jsonl").write_text('[1]\n{"loss": "high"}\n{"lo')
    assert statuses(caramba, run)["half/finetune"] in ("done", "damaged")
    assert len(caramba("runs", "list")[1].splitlines()) == 8


def test_names_cannot_write_to_the_terminal(runs: Path, caramba: Command) -> None:
    (runs / "small" / "half").rename(runs / "small" / "ha\x1b[31mlf\n")
    out = caramba("runs", "list")[1]
    assert "\x1b" not in out
    assert len(out.splitlines()) == 8


def test_show_names_a_run_by_its_folder_or_below_runs(runs: Path, caramba: Command) -> None:
    code, out, _ = caramba("runs", "show", "small/half/finetune", "--json")
    assert code == 0
    data = json.loads(out)
    assert data["checkpoints"] == ["step_000006"]
    assert data["summary"]["perplexity"]["end"] == data["perplexity"]
    assert json.loads(caramba("runs", "show", runs / "small/half/finetune", "--json")[1])["loss"] == data["loss"]
    code, _, err = caramba("runs", "show", "small/half")
    assert code == 2
    assert "runs/small/half/convert" in err
    assert "caramba runs list" in caramba("runs", "show", "small/quarter")[2]


# ------------------------------------------------------------------------------------------------ diff


def test_what_differs_is_named_by_its_path(runs: Path, caramba: Command) -> None:
    a, b = runs / "small" / "half" / "finetune", runs / "small" / "less" / "finetune"
    settings = {one.path: (one.a, one.b) for one in of_settings(a, b)}
    assert settings == {"model.replace.attention.v_dim": (10, 4), "run.seed": (1, 2)} or (
        settings.pop("run.seed") == (1, 2) and all(path.endswith("v_dim") for path in settings) and settings
    )
    results = {one.path: (one.a, one.b) for one in of_results(a, b)}
    assert results["perplexity.end"] == tuple(
        json.loads((run / "summary.json").read_text())["perplexity"]["end"] for run in (a, b)
    )
    assert "versions.torch" not in results
    code, out, _ = caramba("runs", "diff", a, b)
    assert code == 0
    assert "v_dim\n    a: 10\n    b: 4\n" in out
    data = json.loads(caramba("runs", "diff", a, b, "--json")[1])
    assert {one["path"] for one in data["settings"]} >= {"run.seed"}


def test_a_run_does_not_differ_from_itself(runs: Path, caramba: Command) -> None:
    same = caramba("runs", "diff", "small/half/finetune", "small/half/finetune")[1]
    assert same == "settings: no difference\nresults: no difference\n"


# ------------------------------------------------------------------------------------------------ rm


def test_rm_says_what_it_frees_and_who_continues(runs: Path, caramba: Command) -> None:
    run = runs / "small" / "half" / "convert"
    code, _, err = caramba("runs", "rm", run)
    assert code == 2  # nobody is there to ask
    assert "--yes" in err
    assert run.is_dir()
    code, out, err = caramba("runs", "rm", run, "--yes")
    assert code == 0
    assert "continued by half/finetune, half/say" in err
    assert out.startswith("freed ")
    assert sorted(path.name for path in run.parent.iterdir()) == ["finetune", "say"]
    data = json.loads(caramba("runs", "rm", run.parent / "say", "--yes", "--json")[1])
    assert data["removed"] == [str(run.parent / "say")]
    assert data["freed_bytes"] > 0


def test_rm_refuses_a_run_that_a_process_holds(runs: Path, caramba: Command) -> None:
    run = runs / "small" / "half"
    with RunDirectory(run / "finetune"):
        code, _, err = caramba("runs", "rm", run / "convert", run / "finetune", "--yes")
    assert code == 2
    assert "in use by another caramba process" in err
    assert (run / "convert" / "state.json").exists()  # nothing is removed where one is refused
    (run / "link").symlink_to(run / "finetune")
    code, _, err = caramba("runs", "rm", run / "link", "--yes")
    assert code == 2
    assert "is a link" in err
    assert (run / "finetune" / "summary.json").exists()
