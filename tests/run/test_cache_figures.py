"""One meaning of cached bytes per token: plan, summary, tables and pictures say the same of windows and of states."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from caramba_plugins_draw.terminal import show
from rich.console import Console

import caramba
from caramba_core.cli import main
from caramba_core.manifest.load import load_manifest
from caramba_core.plan import plan_manifest

MANIFEST = """\
version: 1
name: hybrid
model:
  type: transformer
  embedder: {type: token, vocab_size: 64, d_model: 32}
  topology:
    type: stacked
    layers:
      - {type: sliding_window, n_heads: 4, n_kv_heads: 2, head_dim: 8, window: 16, sinks: 3}
      - {type: linear_attention, n_heads: 4, n_kv_heads: 2, head_dim: 8, features: 16, window: 10, sinks: 3}
      - {type: gqa, n_heads: 4, n_kv_heads: 2, head_dim: 8}
groups:
  - name: g
    data: {train: tokens.npy, heldout: tokens.npy}
    eval: {windows: 4, context: 32}
    runs:
      - {id: a, mode: train, steps: 1, train: {strategy: pretrain, batch_size: 2, context: 48, lr: 0.001}}
"""

PER_TOKEN = (
    (19 + 13 + 48) * 2 * 16 * 4 / 48
)  # keys and values of 2 x 8 in float32: window, window of the linear one, all
ONCE = 2 * 16 * 9 * 4  # the linear attention's state


def caramba_(*arguments: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert not ended.value.code


def test_the_same_figures_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 60, 2000).astype(np.uint16))
    manifest = tmp_path / "m.yml"
    manifest.write_text(MANIFEST)
    caramba_("run", manifest, "--output", tmp_path / "runs")
    table = capsys.readouterr().out
    assert "cache B/token at 48" in table
    assert f"{PER_TOKEN:.0f} + 1.12 KiB once" in table
    folder = tmp_path / "runs" / "hybrid" / "g" / "a"
    summary, plan = (json.loads((folder / name).read_text()) for name in ("summary.json", "plan.json"))
    assert summary["cache_bytes_per_token"] == {"student": pytest.approx(PER_TOKEN)}
    assert summary["cache_bytes_once"] == {"student": ONCE}
    assert (summary["cache_context"], summary["cache_dtype"]) == (plan["context"], plan["dtype"]) == (48, "float32")
    cache = plan["model"]["cache"]
    assert cache["bytes_per_token"] == pytest.approx(PER_TOKEN)
    assert cache["state_bytes"] == ONCE
    assert cache["bytes_at_context"] == PER_TOKEN * 48 + ONCE
    (row,) = caramba.runs(tmp_path / "runs")
    assert (row.cache_bytes_per_token, row.cache_bytes_once, row.cache_context) == (PER_TOKEN, ONCE, 48)
    shown = str(caramba.runs(tmp_path / "runs"))  # whose columns may break between words
    assert f"{PER_TOKEN:.0f} at 48" in shown
    assert "1.12 KiB once" in shown
    caramba_("compile", manifest, "--print-plan")
    assert f"{PER_TOKEN:.0f} bytes per token at a context of 48" in capsys.readouterr().out
    for suffix in ("svg", "mmd", "html"):
        caramba_("graph", manifest, "-o", tmp_path / f"m.{suffix}")
        picture = (tmp_path / f"m.{suffix}").read_text()
        assert "at a context of 48" in picture
        assert f"{PER_TOKEN:.0f} cached bytes per token" in picture
        assert "1.12 KiB cached once per sequence" in picture


def test_a_state_takes_nothing_per_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "tokens.npy", np.random.default_rng(0).integers(0, 60, 2000).astype(np.uint16))
    layers = MANIFEST.splitlines(keepends=True)
    text = "".join(line for line in layers if "type: sliding" not in line and "type: gqa" not in line)
    (tmp_path / "m.yml").write_text(text.replace("window: 10, sinks: 3", "window: 0, sinks: 0"))
    caramba_("run", tmp_path / "m.yml", "--output", tmp_path / "runs")
    assert "0 + 1.12 KiB once" in capsys.readouterr().out


def test_nothing_is_cut_off_in_a_narrow_terminal() -> None:
    """Of the widest that is shipped: thirty layers with windows and states."""
    plans = plan_manifest(load_manifest("smollm2_135m_linear_attention"))
    text = io.StringIO()
    show(plans, console=Console(file=text, width=80, force_terminal=True, color_system=None))
    assert "\u2026" not in text.getvalue()
    assert "+ once" in text.getvalue()
    assert max(map(len, text.getvalue().splitlines())) <= 80
