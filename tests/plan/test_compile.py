"""``caramba compile``: what it prints, what it refuses, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pluggy
import pytest
from caramba_plugins_draw import plugin as draw

from caramba_core import hookspecs
from caramba_core.cli import main
from caramba_core.errors import ManifestError
from caramba_core.hookspecs import Section, hookimpl
from caramba_core.manifest.load import load_manifest
from caramba_core.plan import Plan, plan_manifest
from caramba_core.plan.data import plan_document
from caramba_core.plugins.registry import registry

MANIFEST = """\
version: 1
name: small
vars: {width: 24, d_ff: 32}
model:
  tied_embeddings: true
  embedder: {type: token, vocab_size: 40, d_model: "${width}"}
  topology:
    type: stacked
    layers:
      - type: nested
        repeat: 3
        layers:
          - {type: residual, layers: [rms_norm, {type: gqa, n_heads: 4, n_kv_heads: 2, head_dim: 6}]}
          - {type: residual, layers: [rms_norm, {type: swiglu, d_ff: "${d_ff}"}]}
      - rms_norm
groups:
  - name: a
    teacher: {source: teacher, dtype: bfloat16}
    data: {train: train.npy, heldout: heldout.npy}
    runs:
      - {id: fit, mode: train, steps: 5, train: {strategy: upcycle.global, trains: [mlp], lr: 1e-3, context: 16}}
      - {id: measure, mode: eval}
  - {name: b, extends: a, vars: {d_ff: 64}}
"""

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 6,
    "hidden_act": "silu",
    "vocab_size": 40,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "small.yml"
    path.write_text(MANIFEST)
    return path


@pytest.fixture
def teacher(manifest: Path) -> Path:
    folder = manifest.parent / "teacher"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def caramba(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


# ------------------------------------------------------------------------------------------------ output


def test_one_line_a_group(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caramba("compile", manifest) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["small/a", "small/b"]
    assert all("teacher teacher is not on this machine" in line for line in lines)


def test_the_plan_in_a_terminal(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caramba("compile", manifest, "--print-plan", "--group", "b") == 0
    shown = capsys.readouterr().out
    assert "small/b" in shown
    assert "small/a" not in shown
    assert "0-2  x 3" in shown
    assert shown.count("swiglu") == 1  # repeated blocks once
    assert "up_proj 64x24" in shown
    assert "its size is not known" in " ".join(shown.split())  # a long folder name moves the line's breaks
    assert caramba("compile", manifest, "--full", "--group", "b") == 0
    assert capsys.readouterr().out.count("swiglu") == 3


@pytest.mark.parametrize(
    ("written", "huge", "said"),
    [
        (
            "vocab_size: 40",
            f"vocab_size: {1 << 62}",
            r"6:13: error: model\.embedder: the weight weight is too large: 4,611,",
        ),
        ("d_ff: 32}", f"d_ff: {1 << 62}}}", r"\d+:\d+: error: model\..*: the weight gate_proj is too large: 4,611,"),
        (
            "type: nested\n        repeat: 3",
            f"type: recurrent\n        times: {10**9}",
            r"11:16: error: .* is above 1000000",
        ),
        ("repeat: 3", f"repeat: {10**9}", r"11:17: error: .* is above 20000"),
    ],
    ids=["vocabulary", "width", "applications", "repetitions"],
)
def test_what_is_too_large_is_said_where_it_stands(
    manifest: Path, written: str, huge: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written in MANIFEST
    manifest.write_text(MANIFEST.replace(written, huge))
    assert caramba("compile", manifest) == 2
    assert re.search(rf"small\.yml:{said}", capsys.readouterr().err)


def test_the_plan_as_data(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caramba("compile", manifest, "--json", "--context", "8") == 0
    plans = json.loads(capsys.readouterr().out)
    assert [plan["group"] for plan in plans] == ["a", "b"]
    plan = plans[0]
    loaded = load_manifest(manifest)
    (planned,) = plan_manifest(loaded, group="a", context=8)
    assert plan == json.loads(json.dumps(plan_document(planned)))
    assert plan["model"]["parameters"] == planned.model.total.parameters
    assert plan["context"] == 8
    assert plan["teacher"]["local"] is False
    blocks = next(node for node in plan["model"]["nodes"][1]["scopes"][0]["nodes"] if node["name"] == "model.blocks")
    (scope,) = blocks["scopes"]
    assert scope["names"] == ["model.blocks.0", "model.blocks.1", "model.blocks.2"]
    assert sum(_leaf_parameters(plan["model"]["nodes"])) == plan["model"]["parameters"]
    for run in plan["runs"]:
        parts = {k: v for k, v in run["memory"].items() if k not in ("total", "shared") and v is not None}
        assert run["memory"]["total"] == sum(parts.values())


def _leaf_parameters(nodes: list[dict[str, Any]]) -> list[int]:
    found = []
    for node in nodes:
        inner = [p for scope in node.get("scopes", ()) for p in _leaf_parameters(scope["nodes"]) * len(scope["names"])]
        found.append(node["parameters"] if "scopes" not in node else sum(inner))
    return found


def test_the_context_is_that_of_the_longest_run(manifest: Path) -> None:
    text = manifest.read_text()
    run = "      - {id: long, mode: eval, eval: {context: 48}}\n"
    manifest.write_text(text.replace("  - {name: b,", f"{run}  - {{name: b,"))
    assert [plan.model.context for plan in plan_manifest(load_manifest(manifest))] == [48, 48]
    assert plan_manifest(load_manifest(manifest), context=7)[0].model.context == 7


def test_format_json_is_the_same(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caramba("compile", manifest, "--json") == 0
    first = capsys.readouterr().out
    assert caramba("compile", manifest, "--format", "json") == 0
    assert capsys.readouterr().out == first
    assert caramba("compile", manifest, "--format", "xml") == 2


def test_resolved_reads_as_the_same_manifest(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caramba("compile", manifest, "--resolved") == 0
    text = capsys.readouterr().out
    assert "${" not in text
    again = manifest.with_name("again.yml")
    again.write_text(text)
    assert load_manifest(again).manifest == load_manifest(manifest).manifest


def test_set(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caramba("compile", manifest, "--json", "--group", "a", "--set", "vars.d_ff=8") == 0
    few = json.loads(capsys.readouterr().out)[0]["model"]["parameters"]
    assert caramba("compile", manifest, "--json", "--group", "a") == 0
    assert json.loads(capsys.readouterr().out)[0]["model"]["parameters"] - few == 3 * 3 * 24 * (32 - 8)


def test_a_manifest_without_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bare.yml"
    path.write_text(MANIFEST.split("groups:")[0])
    assert caramba("compile", path, "--print-plan") == 0
    assert "bare" not in capsys.readouterr().out
    (plan,) = plan_manifest(load_manifest(path))
    assert (plan.group, plan.runs, plan.title) == (None, (), "small")


def test_tables_of_plugins(manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What plugins add follows each plan, and only where a plan is shown."""
    asked: list[str] = []

    class Hooks:
        """With the pictures' own: it shows the plan."""

        @hookimpl
        def plan_sections(self, plan: Plan) -> list[Section]:
            asked.append(plan.title)
            rows = (("norm", 1234, None), ("mlp", 5, 0.5))
            return [Section(title="Energy", columns=("node", "joules", "share"), rows=rows)]

    manager = pluggy.PluginManager("caramba")
    manager.add_hookspecs(hookspecs)
    manager.register(Hooks())
    manager.register(draw)
    monkeypatch.setitem(vars(registry()), "hooks", manager.hook)
    assert caramba("compile", manifest) == 0
    assert asked == []
    capsys.readouterr()
    assert caramba("compile", manifest, "--print-plan") == 0
    assert asked == ["small/a", "small/b"]
    shown = capsys.readouterr().out
    assert shown.count("Energy") == 2
    assert "1,234" in shown


def test_nobody_shows_plans(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manager = pluggy.PluginManager("caramba")
    manager.add_hookspecs(hookspecs)
    monkeypatch.setitem(vars(registry()), "hooks", manager.hook)
    assert caramba("compile", manifest, "--json") == 0
    assert caramba("compile", manifest, "--print-plan") == 2
    assert "error: no installed plugin shows plans on the terminal\n  hint: --json gives" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ teachers


def test_a_local_teacher_is_planned(manifest: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caramba("compile", manifest, "--json", "--group", "a") == 0
    plan = json.loads(capsys.readouterr().out)[0]
    assert plan["teacher"]["local"] is True
    assert plan["teacher"]["cache"]["values_per_token"] == 3 * 2 * 4 * 6
    student = plan["model"]
    fit = plan["runs"][0]["memory"]
    assert fit["teacher"] == plan["teacher"]["weight_bytes"]
    assert fit["weights"] + fit["shared"] == student["weight_bytes"] + 3 * 3 * 24 * 32 * 2  # MLPs train in float32
    assert caramba("compile", manifest, "--print-plan", "--group", "a") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "a cache 2.00 times smaller than the teacher's 288 bytes per token" in shown


def test_a_damaged_teacher_is_an_error(manifest: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (teacher / "config.json").write_text("{")
    assert caramba("compile", manifest) == 2
    assert "config.json" in capsys.readouterr().err


def test_addresses_are_never_fetched(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    address = "groups.0.teacher.source=hf://nobody/nothing"
    assert caramba("compile", manifest, "--group", "a", "--set", address) == 0
    assert "hf://nobody/nothing is not on this machine" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ faults


def test_faults_of_the_graph_have_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = MANIFEST.replace("      - rms_norm\n", "      - {type: residual, layers: [{type: linear, d_out: 9}]}\n")
    path = tmp_path / "bad.yml"
    path.write_text(text.replace("head_dim: 6}]}", "head_dim: 6}, {type: linear, d_out: 5}]}"))
    with pytest.raises(ManifestError) as caught:
        plan_manifest(load_manifest(path))
    places = [(problem.line, problem.column) for problem in caught.value.problems]
    lines = path.read_text().splitlines()
    found = [lines[line - 1][column - 1 :].split(",")[0] for line, column in places if line and column]
    assert found == ["{type: linear", "{type: linear"]
    assert [line for line, _ in places] == [13, 15]
    assert "5 from model.blocks.0.linear" in caught.value.problems[0].message
    assert caramba("compile", path) == 2
    assert f"{path}:13:" in capsys.readouterr().err


def test_patterns_that_choose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bad.yml"
    path.write_text(MANIFEST.replace("trains: [mlp]", 'trains: [mlp, atention, "blocks.7.*"]'))
    with pytest.raises(ManifestError) as caught:
        plan_manifest(load_manifest(path))
    messages = [problem.message for problem in caught.value.problems]
    assert [message.split("'")[1] for message in messages] == ["atention", "blocks.7.*"]
    assert "did you mean 'attention'" in messages[0]
    assert all(problem.line == 21 for problem in caught.value.problems)


def test_unknown_group(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caramba("compile", manifest, "--group", "c") == 2
    assert "expected: a, b" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ imports

HEAVY = ("torch", "numpy", "safetensors", "gguf", "huggingface_hub", "tokenizers")
PROBE = """
import sys
from caramba_core.cli import main
from caramba_core.graph import Graph
from caramba_core.plugins.registry import registry
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
loaded = [name for name in {heavy!r} if name in sys.modules]
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile", "llama32_1b_dba"],
        ["compile", "llama32_1b_dba", "--print-plan"],
        ["compile", "MANIFEST", "--json"],
        ["compile", "MANIFEST", "--resolved"],
        ["graph", "MANIFEST", "-o", "model.html"],
        ["schema", "-o", "schema.json"],
        ["explain", "dba"],
    ],
    ids=" ".join,
)
def test_no_torch_no_numpy(arguments: list[str], manifest: Path, teacher: Path) -> None:
    """In a fresh interpreter; the teacher is local, so that its headers are read as well."""
    filled = [str(manifest) if argument == "MANIFEST" else argument for argument in arguments]
    command = [sys.executable, "-c", PROBE.format(heavy=HEAVY), *filled]
    elsewhere = {**os.environ, "HF_HUB_CACHE": str(manifest.parent)}
    done = subprocess.run(command, cwd=manifest.parent, env=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
