"""Two processes that train together compute what one does, and end together."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.prepared import Ran, Started, start

from .workspace import make_workspace

RUNS = {
    "global": "{type: upcycle.global, cross_entropy: 0.5, logit_rows: 24}, trains: [attention, norm], accumulate: 2",
    "blockwise": "upcycle.blockwise, trains: [attention]",
    "students": "{type: upcycle.blockwise, inputs: student}, trains: [attention]",
    "pretrain": "pretrain, accumulate: 2, skip_spikes: 9.0",
    "finetune": "finetune, optimizer: OPTIMIZER",
}


def write(folder: Path, name: str, data: int, shard: str, *, runs: str = "", steps: int = 10) -> None:
    """A manifest whose group converts, then trains in every way."""
    if not (folder / "manifest.yml").exists():
        make_workspace(folder)
    head = (folder / "manifest.yml").read_text().partition("    runs:")[0]
    text = head.replace("name: small", f"name: {name}")
    text += (
        "    runs:\n      - {id: convert, mode: convert, seed: 3, device: cpu, start: {tokens: 160, max_context: 32}}\n"
    )
    for run, strategy in RUNS.items():
        if runs and run not in runs.split():
            continue
        strategy = strategy.replace("OPTIMIZER", "muon" if shard == "false" else "{type: adamw, weight_decay: 0.1}")
        text += (
            f"      - {{id: {run}, mode: train, seed: 3, steps: {steps}, from: convert, train: {{strategy: {strategy},"
        )
        text += " device: cpu, batch_size: 4, context: 32, lr: 1.0e-3, checkpoint_every: 4, evaluate_every: 5, "
        text += f"parallel: {{data: {data}, shard: {shard}}}}}}}\n"
    (folder / f"{name}.yml").write_text(text)


def caramba(folder: Path, *arguments: str, processes: int = 2) -> list[Started]:
    """The command in so many processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes > 1:
        shared |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(
            "caramba", "run", *arguments, cwd=folder, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(processes)
    ]


def ended(started: list[Started]) -> list[Ran]:
    return [process.ended() for process in started]


def done(started: list[Started]) -> None:
    first, *others = ended(started)
    assert first.code == 0, first.err
    assert [(each.code, each.out, each.err) for each in others] == [(0, "", "")] * len(others)


def metrics(folder: Path, name: str, run: str) -> list[dict[str, Any]]:
    lines = (folder / "runs" / name / "half" / run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "measured")} for line in lines]


def assert_same(folder: Path, one: str, other: str, runs: list[str]) -> None:
    for run in runs:
        first, second = metrics(folder, one, run), metrics(folder, other, run)
        assert len(first) == len(second)
        for a, b in zip(first, second, strict=True):
            assert a == pytest.approx(b, rel=1e-4), (run, a, b)
        end = [folder / "runs" / name / "half" / run / "checkpoints" / "step_000010" for name in (one, other)]
        for file in ("model", "optimizer"):
            a, b = (load_file(path / f"{file}.safetensors") for path in end)
            assert a.keys() == b.keys()
            for name, tensor in a.items():
                assert tensor.shape == b[name].shape
                assert tensor.dtype == b[name].dtype
                assert (tensor.double() - b[name].double()).norm() <= 1e-3 * tensor.double().norm(), (run, name)


@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_processes_compute_what_one_does(tmp_path: Path, shard: str) -> None:
    """Every strategy, and the conversion before it."""
    write(tmp_path, "one", 1, "false")
    if shard == "true":
        text = (tmp_path / "one.yml").read_text()
        (tmp_path / "one.yml").write_text(text.replace("muon", "{type: adamw, weight_decay: 0.1}"))
    write(tmp_path, "two", 2, shard)
    done(caramba(tmp_path, "one.yml", processes=1))
    done(caramba(tmp_path, "two.yml"))
    assert_same(tmp_path, "one", "two", [*RUNS])


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """From one to two, divided, and back to one, in the middle of it."""
    for name in ("whole", "parts"):
        write(tmp_path, name, 1, "false", runs="pretrain global")
        done(caramba(tmp_path, f"{name}.yml", "--run", "convert", processes=1))
    write(tmp_path, "whole", 1, "false", runs="pretrain global")
    done(caramba(tmp_path, "whole.yml", processes=1))
    for steps, data, shard in ((4, 1, "false"), (7, 2, "true"), (8, 2, "false"), (10, 1, "false")):
        write(tmp_path, "parts", data, shard, runs="pretrain global", steps=steps)
        done(caramba(tmp_path, "parts.yml", "--resume", processes=data))
    for run in ("pretrain", "global"):
        end = [line["loss"] for line in metrics(tmp_path, "parts", run) if "loss" in line]
        assert len(end) == 10


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("rank", [0, 1])
def test_all_processes_end_with_one(tmp_path: Path, number: signal.Signals, rank: int) -> None:
    """With one line about one that was killed; behind the step, and saved, where one is asked to end."""
    write(tmp_path, "small", 2, "true", runs="pretrain", steps=400)
    started = caramba(tmp_path, "small.yml")
    folder = tmp_path / "runs/small/half/pretrain"
    while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < 6:
        assert all(process.process.is_alive() for process in started)
    started[rank].send_signal(number)
    ran = ended(started)
    if number is signal.SIGKILL:
        assert [one.code for one in ran] == ([-9, 1] if rank == 0 else [1, -9])
        said = [line for line in ran[1 - rank].err.splitlines() if line.startswith(("error", "Traceback"))]
        assert said == [f"error: process {rank} of 2 was killed, and the run ends with it"]
        return
    state = json.loads((folder / "state.json").read_text())
    assert [one.code for one in ran] == [143, 0]
    assert ran[1].err == ""
    assert state["status"] == "interrupted"
    assert state["step"] == len([line for line in metrics(tmp_path, "small", "pretrain") if "loss" in line]) < 400
