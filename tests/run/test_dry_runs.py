"""What ``--dry-run`` says before anything is computed, with its place; ``compile`` says what needs no tokens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from caramba_core.cli import main

from .workspace import make_workspace

TRAIN = "{strategy: pretrain, lr: 1.0e-3, context: 32, batch_size: 1}"
LONG = TRAIN.replace("32", "3999")
BLOCKWISE = "{strategy: upcycle.blockwise, trains: [TRAINS], lr: 1.0e-3, context: 32}"
CONVERT = "{id: convert, mode: convert, start: {tokens: 512, max_context: 32}}"
NO_TEACHER = "    teacher: {source: teacher}\n"


def caramba(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def manifest_of(folder: Path, *runs: str, teacher: bool = True, converts: bool = True) -> Path:
    """The workspace's manifest with other runs: each has a line of its own, from 28 on."""
    manifest = make_workspace(folder)
    head, _, _ = manifest.read_text().partition("      - {id: convert")
    if not teacher:
        head = head.replace(NO_TEACHER, "    vars: {}\n")
    if not converts:
        before, _, rest = head.partition("              - {type: dba")
        _, _, after = rest.partition("o_bias: true}\n")
        own = "              - {type: gqa, n_heads: 4, n_kv_heads: 2, head_dim: 8, rope: {theta: 100.0}}\n\n"
        head = before + own + after
    manifest.write_text(head + "".join(f"      - {run}\n" for run in runs))
    return manifest


CASES: dict[str, tuple[dict[str, bool], tuple[str, ...], str]] = {
    "blockwise trains more than it can": (
        {},
        (CONVERT, f"{{id: t, mode: train, steps: 1, train: {BLOCKWISE.replace('TRAINS', 'attention, norm')}}}"),
        "29:{at:trains: [}: error: groups.0.runs.1.train.trains: upcycle.blockwise trains converted attentions only",
    ),
    "blockwise trains nothing of its own": (
        {},
        (CONVERT, f"{{id: t, mode: train, steps: 1, train: {BLOCKWISE.replace('TRAINS', 'mlp')}}}"),
        "29:{at:trains: [}: error: groups.0.runs.1.train.trains: upcycle.blockwise trains converted attentions only",
    ),
    "blockwise without a difference": (
        {"converts": False},
        (f"{{id: t, mode: train, steps: 1, train: {BLOCKWISE.replace('TRAINS', 'attention')}}}",),
        "28:{at:strategy: }: error: groups.0.runs.0.train.strategy: there is nothing to train",
    ),
    "patterns of what has no weights": (
        {},
        (f"{{id: t, mode: train, steps: 1, train: {TRAIN[:-1]}, trains: [head]}}}}",),
        "28:{at:trains: [}: error: groups.0.runs.0.train.trains: nothing would train: model.head has no weights",
    ),
    "verify without a teacher": (
        {"teacher": False},
        (f"{{id: t, mode: train, steps: 1, train: {TRAIN}, verify: {{perplexity_ratio_at_most: 1.1}}}}",),
        "28:{at:at_most: }: error: groups.0.runs.0.verify.perplexity_ratio_at_most: there is no ratio to hold against",
    ),
    "verify of what measures nothing": (
        {},
        (CONVERT, "{id: s, mode: generate, prompt: a, verify: {perplexity_ratio_at_most: 1.1}}"),
        "29:{at:at_most: }: error: groups.0.runs.1.verify.perplexity_ratio_at_most: there is no ratio to hold against",
    ),
    "an evaluation of random weights": (
        {"teacher": False},
        ("{id: look, mode: eval}", f"{{id: t, mode: train, steps: 1, train: {TRAIN}}}"),
        "28:{at:mode: }: error: groups.0.runs.0.mode: mode eval needs a run before this one that trains or converts: "
        "its weights would be random",
    ),
    "an evaluation before the conversion": (
        {},
        ("{id: look, mode: eval}", CONVERT),
        "28:{at:mode: }: error: groups.0.runs.0.mode: mode eval needs a run before this one that trains or converts: "
        "those of model.blocks.0.attention would be random",
    ),
    "an evaluation behind one": (
        {},
        (CONVERT, "{id: look, mode: eval}", "{id: again, mode: eval, from: look}"),
        "",
    ),
    "an evaluation of the teacher's own": ({"converts": False}, ("{id: look, mode: eval}",), ""),
}
WITH_TOKENS: dict[str, tuple[tuple[str, ...], str]] = {
    "training on too long a context": (
        (f"{{id: t, mode: train, steps: 1, train: {TRAIN.replace('32', '4000')}}}",),
        "28:{at:context: }: error: groups.0.runs.0.train.context: ",
    ),
    "evaluation of too long a context": (
        (f"{{id: t, mode: train, steps: 1, train: {TRAIN}, eval: {{context: 401}}}}",),
        "28:{at:eval: {context: }: error: groups.0.runs.0.eval.context: ",
    ),
    "evaluation of too many windows": (
        (f"{{id: t, mode: train, steps: 1, train: {TRAIN}, eval: {{context: 64, windows: 7}}}}",),
        "28:{at:windows: }: error: groups.0.runs.0.eval.windows: ",
    ),
    "calibration on too many tokens": (
        ("{id: convert, mode: convert, start: {tokens: 4096}}",),
        "28:{at:tokens: }: error: groups.0.runs.0.start.tokens: ",
    ),
    "what training and evaluation just have": (
        (f"{{id: t, mode: train, steps: 1, train: {LONG}, eval: {{context: 400, windows: 1}}}}",),
        "",
    ),
}


def expected(manifest: Path, pattern: str) -> str:
    """``29:{at:KEY}: error: ...`` with the column behind KEY in line 29."""
    number, _, rest = pattern.partition(":{at:")
    key, _, rest = rest.partition("}: error")
    line = manifest.read_text().splitlines()[int(number) - 1]
    assert key in line
    column = line.index(key) + len(key) + (1 if key[-1] not in "[{" else 0)
    return f"{manifest}:{number}:{column}: error{rest}"


@pytest.mark.parametrize("name", CASES)
def test_what_needs_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    options, runs, pattern = CASES[name]
    manifest = manifest_of(tmp_path, *runs, **options)
    for command in (("compile", manifest), ("run", manifest, "--dry-run", "--output", tmp_path / "runs")):
        assert caramba(*command) == (2 if pattern else 0)
        said = " ".join(capsys.readouterr().err.split())
        assert not pattern or expected(manifest, pattern) in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_what_needs_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    runs, pattern = WITH_TOKENS[name]
    manifest = manifest_of(tmp_path, *runs)
    assert caramba("run", manifest, "--dry-run", "--output", tmp_path / "runs") == (2 if pattern else 0)
    said = " ".join(capsys.readouterr().err.split())
    assert not pattern or expected(manifest, pattern) in said
    assert not pattern or "too few" in said
    assert not (tmp_path / "runs").exists()


def test_what_is_missing_is_said_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_of(tmp_path, CONVERT, "{id: say, mode: generate, prompt: a}")
    number = 1 + manifest.read_text().splitlines().index(NO_TEACHER.rstrip())
    for pattern in (
        "29:{at:mode: }: error: groups.0.runs.1.mode: run say needs a tokenizer: the teacher's checkpoint carries none",
        f"{number}:{{at:source: }}: error: groups.0.teacher.source: {tmp_path / 'teacher'} does not exist",
    ):
        assert caramba("run", manifest, "--dry-run", "--output", tmp_path / "runs") == 2
        assert expected(manifest, pattern) in " ".join(capsys.readouterr().err.split())
        shutil.rmtree(tmp_path / "teacher", ignore_errors=True)


def test_a_teacher_that_compile_cannot_see_is_left_to_the_run(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, "{id: look, mode: eval}", CONVERT)
    shutil.rmtree(tmp_path / "teacher")
    manifest.write_text(manifest.read_text().replace("source: teacher", "source: hf://org/elsewhere"))
    assert caramba("compile", manifest) == 0


def test_a_plan_of_several_processes_needs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what is done needs torchrun, and says so before a run's folder is there."""
    train = TRAIN.replace("batch_size: 1", "batch_size: 2, device: cpu, parallel: {data: 2}")
    manifest = manifest_of(tmp_path, f"{{id: t, mode: train, steps: 1, train: {train}}}", converts=False)
    assert caramba("run", manifest, "--dry-run", "--output", tmp_path / "runs") == 0
    assert caramba("compile", manifest) == 0
    capsys.readouterr()
    assert caramba("run", manifest, "--output", tmp_path / "runs") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "train.parallel.data is 2, and one process was started" in said
    assert "torchrun --nproc-per-node 2" in said
    assert "manifest.yml:28" in said
    assert not (tmp_path / "runs").exists()
