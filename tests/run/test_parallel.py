"""Two processes that train together compute what one does, and end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist
from caramba_plugins_standard.parallel import process_count, process_rank
from safetensors.torch import load_file

from caramba_core.errors import InputError
from caramba_core.lowered import lower_group
from caramba_core.manifest.load import load_manifest
from caramba_core.nn.build import build
from caramba_core.plan import plan_manifest
from tests.prepared import Ran, Started, start

from .workspace import make_workspace

RUNS = {
    "global": "{type: upcycle.global, cross_entropy: 0.5, logit_rows: 24, hidden: {weight: 0.5}}, trains: [attention]",
    "blockwise": "{type: upcycle.blockwise, inputs: student}, trains: [attention]",
    "pretrain": "pretrain, accumulate: 2, skip_spikes: 9.0, evaluate_every: 2, checkpoint_every: 2",
    "muon": "pretrain, optimizer: {type: muon, weight_decay: 0.1}, evaluate_every: 2",
    "adapted": "{type: upcycle.global, logit_rows: 24}, lora: {rank: 2}, accumulate: 2",
    "finetune": "finetune, lora: {rank: 3, targets: [mlp]}, trains: [norm], ema: 0.6, evaluate_every: 2",
}
KINDS = {"one": (1, "false"), "copies": (2, "false"), "parts": (2, "true")}
SECONDS = 200.0
"""In which all processes of a run have to end, lest a test waits for ever: those that do not are killed."""


def write(folder: Path, *kinds: str, runs: str = " ".join(RUNS), steps: int = 3, **processes: int) -> None:
    """A manifest with a group for each kind of division, which converts, and trains in several ways."""
    if not (folder / "manifest.yml").exists():
        make_workspace(folder)
        (folder / "train.npy.json").write_text('{"end_of_text": 0}')
    model, _, group = (folder / "manifest.yml").read_text().partition("  - name: half\n")
    documents = "{type: tokens, path: train.npy, documents: true}"  # processes have unequal numbers of labels
    group, text = group.replace("train: train.npy", f"train: {documents}"), model
    for kind in kinds:
        text += f"  - name: {kind}\n" + group.partition("    runs:")[0] + "    runs:\n"
        text += "      - {id: convert, mode: convert, seed: 3, device: cpu, start: {tokens: 160, max_context: 32}}\n"
        data, shard = KINDS[kind]
        data = processes.get(kind, data)
        for run in runs.split():
            text += f"      - {{id: {run}, mode: train, seed: 3, steps: {steps}, from: convert, train: {{strategy: "
            text += f"{RUNS[run]}, device: cpu, batch_size: 4, context: 32, lr: 1.0e-3, schedule: constant, "
            text += f"parallel: {{data: {data}, shard: {shard if data > 1 else 'false'}}}}}}}\n"
    (folder / "small.yml").write_text(text)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def caramba(folder: Path, *arguments: str, processes: int = 2, port: int | None = None) -> list[Started]:
    """The command in so many processes, as torchrun would start them."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1"}
    if processes > 1:
        shared |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port())}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    command = ("caramba", "run", "small.yml", *arguments)
    return [start(*command, cwd=folder, environment=each, seconds=SECONDS) for each in ranks]


def ended(started: list[Started]) -> list[Ran]:
    return [process.ended() for process in started]


def done(started: list[Started]) -> None:
    """They come to their end, and one of them speaks."""
    first, *others = ended(started)
    assert first.code == 0, first.err
    assert [(each.code, each.out, each.err) for each in others] == [(0, "", "")] * len(others)


def metrics(folder: Path, kind: str, run: str) -> list[dict[str, Any]]:
    lines = (folder / "runs" / "small" / kind / run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "measured")} for line in lines]


def assert_same(folder: Path, kind: str, run: str, steps: int) -> None:
    """Metrics and checkpoints of a run are those of one process."""
    for a, b in zip(metrics(folder, "one", run), metrics(folder, kind, run), strict=True):
        assert a == pytest.approx(b, rel=1e-4), (kind, run)
    folders = [folder / "runs/small" / each / run / f"checkpoints/step_{steps:06d}" for each in ("one", kind)]
    for file in sorted(path.name for path in folders[0].glob("[!r]*.safetensors")):
        one, other = (load_file(path / file) for path in folders)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            assert (tensor.shape, tensor.dtype) == (other[name].shape, other[name].dtype)
            apart = (tensor.double() - other[name].double()).norm()
            assert apart <= 1e-3 * tensor.double().norm(), (kind, run, file, name)


def test_plans_are_of_one_process(tmp_path: Path) -> None:
    """Copies divide what sequences take, parts also what weights do; operations are the whole run's."""
    write(tmp_path, *KINDS)
    plans = plan_manifest(load_manifest(str(tmp_path / "small.yml"), fetch=True))
    for one, copies, parts in zip(*(plan.runs[1:] for plan in plans), strict=True):
        assert one.operations == copies.operations == parts.operations
        assert one.batch_size == 2 * copies.batch_size == 2 * parts.batch_size
        for name in ("weights", "shared", "teacher", "optimizer", "activations", "logits"):
            whole, copied, divided = (getattr(run.memory, name) for run in (one, copies, parts))
            if name == "logits" and one.id in ("global", "adapted"):  # of 24 rows at a time, in each process
                assert whole == copied == divided
                continue
            assert copied == (whole / 2 if name in ("activations", "logits") else whole), (one.id, name)
            if name == "weights":  # each has its part of what one process shares with the teacher
                whole += one.memory.shared
                if one.id == "blockwise":  # frozen nodes stay whole
                    whole += whole - one.memory.gradients
            if name == "shared" or (name == "teacher" and one.id not in ("global", "blockwise", "adapted")):
                whole = 0  # a teacher from which nothing is learned is gone
            assert divided == pytest.approx(whole / 2, abs=1), (one.id, name)


def test_plans_count_what_muon_leaves_to_another_optimizer(tmp_path: Path) -> None:
    write(tmp_path, "one", runs="muon")
    manifest = load_manifest(str(tmp_path / "small.yml"), fetch=True)
    plan = plan_manifest(manifest)[0].runs[-1]
    kept = 0
    for name, weight in build(lower_group(manifest, manifest.manifest.groups[0])).named_parameters():
        is_matrix = weight.dim() == 2 and not name.startswith("embedder")
        kept += 4 * weight.numel() if is_matrix else 4 * (2 * weight.numel() + 1)
    assert plan.memory.optimizer == kept


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_divided_plan_counts_what_is_gathered(tmp_path: Path, accumulate: int) -> None:
    """Blocks in turn, the next one with it, and all the time what stands outside of them, with its gradients."""
    write(tmp_path, "one", "parts", runs="pretrain")
    file = tmp_path / "small.yml"
    file.write_text(file.read_text().replace("accumulate: 2", f"accumulate: {accumulate}"))
    manifest = load_manifest(str(file), fetch=True)
    one, parts = (plan.runs[-1].memory for plan in plan_manifest(manifest))
    model = build(lower_group(manifest, manifest.manifest.groups[0]))
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_modules()}
    block = count["blocks.0"]
    outside = count[""] - 3 * block
    assert parts.cast == 4 * (2 * block + 2 * outside)
    held = -(-one.gradients // 2)
    if accumulate == 1:  # gradients come as activations go
        begin = parts.activations + parts.logits + parts.working
        assert begin + parts.gradients == max(begin, held + 8 * block)
    else:
        assert parts.gradients == held


@pytest.mark.slow
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    """Every strategy behind a conversion; then each goes on with another number of processes."""
    write(tmp_path, "one")
    done(caramba(tmp_path, processes=1))
    write(tmp_path, "copies", "parts")
    done(caramba(tmp_path))
    for kind in ("copies", "parts"):
        for run in RUNS:
            assert_same(tmp_path, kind, run, 3)
    runs = "global pretrain finetune"
    write(tmp_path, "one", runs=runs, steps=5)
    done(caramba(tmp_path, "--resume", processes=1))
    write(tmp_path, "copies", runs=runs, steps=5, copies=1)
    done(caramba(tmp_path, "--resume", processes=1))
    write(tmp_path, "parts", runs=runs, steps=4, parts=1)
    done(caramba(tmp_path, "--resume", processes=1))
    write(tmp_path, "parts", runs=runs, steps=5)
    done(caramba(tmp_path, "--resume"))
    for kind in ("copies", "parts"):
        for run in runs.split():
            assert_same(tmp_path, kind, run, 5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_all_processes_end_with_one(tmp_path: Path, number: signal.Signals, rank: int) -> None:
    """With one line about one that was killed; behind the step, and saved, where one is asked to end."""
    whole = rank == 0 and number is signal.SIGKILL  # to the end, beside a run that nothing stopped
    steps = 24 if whole else 300
    write(tmp_path, "copies", "parts", runs="pretrain", steps=steps)
    if whole:
        done(caramba(tmp_path, "--group", "copies"))
    started = caramba(tmp_path, "--group", "parts")
    folder = tmp_path / "runs/small/parts/pretrain"
    assert next((line for line in started[0].stdout if "step " in line), None)  # waits without taking a core
    while not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text().count("\n") < 5:
        assert all(process.process.is_alive() for process in started)
        time.sleep(0.01)
    started[rank].send_signal(number)
    ran = ended(started)
    if number is signal.SIGKILL:
        assert [one.code for one in ran] == ([-9, 1] if rank == 0 else [1, -9])
        said = [line for line in ran[1 - rank].err.splitlines() if line.startswith(("error", "Traceback"))]
        assert said == [f"error: process {rank} of 2 was killed, and the run ends with it"]
        if whole:
            done(caramba(tmp_path, "--group", "parts", "--resume"))
            for a, b in zip(
                metrics(tmp_path, "copies", "pretrain"), metrics(tmp_path, "parts", "pretrain"), strict=True
            ):
                assert a == pytest.approx(b, rel=1e-3)
    else:
        assert [one.code for one in ran] == [143, 143]
        assert ran[1].err == ""
        state = json.loads((folder / "state.json").read_text())
        assert state["status"] == "interrupted"
        assert state["step"] == len([line for line in metrics(tmp_path, "parts", "pretrain") if "loss" in line]) < steps


def measuring(folder: Path) -> tuple[list[Started], str]:
    """Two processes of which the first measures for long; how the manifest was before, and measured less."""
    write(folder, "copies", runs="pretrain")
    manifest, heldout = folder / "small.yml", folder / "heldout.npy"
    np.save(heldout, np.tile(np.load(heldout), 2000))
    text = manifest.read_text()
    manifest.write_text(text.replace("windows: 4", "windows: 20000"))
    return caramba(folder), text


def waiting(folder: Path) -> tuple[list[Started], Path, str]:
    """The same, while the other one waits."""
    started, text = measuring(folder)
    assert next((line for line in started[0].stdout if "perplexity of teacher" in line), None)
    while not list(Path(tempfile.gettempdir()).glob(f"caramba_*/1.{started[1].process.pid}")):
        assert started[1].process.is_alive()  # and has not come yet
    return started, folder / "small.yml", text


@pytest.mark.parametrize(
    ("number", "ranks"), [(signal.SIGTERM, [1]), (signal.SIGINT, [0, 1])], ids=["the other", "both"]
)
def test_a_signal_ends_processes_of_which_one_waits(tmp_path: Path, number: signal.Signals, ranks: list[int]) -> None:
    """For the first one's measurement, here: it ends behind the batch, as a run of one process does."""
    started, manifest, text = waiting(tmp_path)
    for rank in ranks:
        started[rank].send_signal(number)
    first, other = ended(started)
    assert (first.code, other.code, other.out, other.err) == (128 + number, 128 + number, "", "")
    assert first.err == f"stopped by {number.name}; the same command with --resume goes on\n"
    assert f"convert stopped at step 0: stopped by {number.name}, " in first.out
    assert json.loads((tmp_path / "runs/small/copies/convert/state.json").read_text())["status"] == "interrupted"
    manifest.write_text(text)
    done(caramba(tmp_path, "--resume"))


def test_a_kill_is_told_where_the_first_process_is_asked_to_end_for_it(tmp_path: Path) -> None:
    """As torchrun does at once."""
    started, _, _ = waiting(tmp_path)
    started[1].send_signal(signal.SIGKILL)
    started[1].process.join()
    started[0].send_signal(signal.SIGTERM)
    ran = ended(started)[0]
    assert ran.code in (1, 143)
    assert ran.err.count("error: process 1 of 2 was killed, and the run ends with it") == 1


def test_a_first_process_that_a_signal_ends_waits_for_none_that_has_not_come(tmp_path: Path) -> None:
    """The signal has ended that one, too; and whoever does not end in half a minute is killed by torchrun."""
    started, _ = measuring(tmp_path)
    started[1].send_signal(signal.SIGKILL)
    assert next((line for line in started[0].stdout if "perplexity of teacher" in line), None)
    started[0].send_signal(signal.SIGTERM)
    started[0].process.join(timeout=25)
    assert not started[0].process.is_alive()
    assert ended(started)[0].code == 143


def test_the_first_process_waits_at_its_end_for_one_that_is_late(tmp_path: Path) -> None:
    """It keeps the store, of whose loss torch leaves a trace."""
    write(tmp_path, "copies", runs="pretrain")
    started, end = caramba(tmp_path), tmp_path / "runs/small/copies/pretrain/checkpoints/step_000003"
    assert next((line for line in started[0].stdout if "train copies/pretrain" in line), None)
    while not end.exists():  # the last of what is done together
        assert started[0].process.is_alive()
    started[1].send_signal(signal.SIGSTOP)
    assert next((line for line in started[0].stdout if "artifacts" in line), None)
    started[0].process.join(timeout=6)
    started[1].send_signal(signal.SIGCONT)
    done(started)


def test_the_first_process_waits_at_its_end_for_one_that_comes_late(tmp_path: Path) -> None:
    """A run that is done needs nobody, and whoever comes behind its end would look for the first process for hours."""
    write(tmp_path, "copies", runs="pretrain")
    done(caramba(tmp_path))
    started = caramba(tmp_path, "--resume")
    started[1].send_signal(signal.SIGSTOP)
    assert next((line for line in started[0].stdout if "artifacts" in line), None)
    started[0].process.join(timeout=4)
    assert started[0].process.is_alive()
    started[1].send_signal(signal.SIGCONT)
    done(started)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    write(tmp_path, "copies", runs="pretrain")
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        first, second = caramba(tmp_path, port=port)
        ran = first.ended()
        second.send_signal(signal.SIGKILL)
        second.ended()
    assert ran.code == 2
    assert f"error: process 0 cannot meet the others at 127.0.0.1:{port} (MASTER_ADDR, MASTER_PORT): " in ran.err
    assert "plugin" not in ran.err


def test_a_process_whose_data_is_wrong_says_so_and_ends_the_other_one(tmp_path: Path) -> None:
    """Here the second of two machines has another file."""
    there = tmp_path / "there"
    there.mkdir()
    for folder in (tmp_path, there):
        write(folder, "copies", runs="pretrain")
    np.save(there / "train.npy", np.full(4000, 200, np.uint16))
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(free_port())
    started = [
        start("caramba", "run", "small.yml", cwd=folder, environment={**shared, "RANK": rank}, seconds=SECONDS)
        for folder, rank in ((tmp_path, "0"), (there, "1"))
    ]
    first, other = ended(started)
    assert (first.code, first.err, other.code) == (1, "", 2)
    assert "there/train.npy holds token id 200 at 0, beyond the vocabulary" in other.err


def test_a_process_that_waits_for_another_hears_signals(tmp_path: Path) -> None:
    """One that died before it came, for example."""
    write(tmp_path, "copies", runs="pretrain")
    port = free_port()
    first, other = caramba(tmp_path, port=port)
    other.send_signal(signal.SIGKILL)
    while first.process.is_alive():  # until it has opened the store
        with socket.socket() as asks:
            if asks.connect_ex(("127.0.0.1", port)) == 0:
                break
    first.send_signal(signal.SIGTERM)
    ran = ended([first, other])
    assert [one.code for one in ran] == [143, -9], ran[0]


def test_a_process_that_dies_before_the_first_exchange_is_missed(tmp_path: Path) -> None:
    """The other one waits for its address by then."""
    write(tmp_path, "copies", runs="pretrain")
    port = free_port()
    first, other = caramba(tmp_path, port=port)
    other.send_signal(signal.SIGSTOP)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    here = json.dumps([socket.gethostname(), other.process.pid])
    dist.PrefixStore("caramba/0", store).set("process/1", here)
    known = store.num_keys()
    while store.num_keys() == known:  # until the first has left its address there
        assert first.process.is_alive()
    other.send_signal(signal.SIGKILL)
    assert other.ended().code == -9
    ran = first.ended()
    assert ran.code == 1
    assert "error: process 1 of 2 was killed, and the run ends with it" in ran.err


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "two"), ("WORLD_SIZE", "0"), ("RANK", "-1")])
def test_an_environment_that_counts_no_processes_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name} is '{value}'"):
        process_count() if name == "WORLD_SIZE" else process_rank()
