"""``dtype: float64`` computes in float64, from the teacher's weights to the likelihoods."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from caramba_core.cli import main

from .workspace import GROUPS, HEADS, LAYERS, WIDTH, make_workspace


def logits(weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """A Llama written out in float64, for ids ``[B, T]``: the workspace's teacher."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    head, tokens = WIDTH // HEADS, ids.shape[1]
    x = w["model.embed_tokens.weight"][ids]
    angles = torch.arange(tokens).double()[:, None] * 100.0 ** -(torch.arange(0, head, 2).double() / head)
    cos, sin = (torch.cat([f(angles)] * 2, dim=-1)[:, None] for f in (torch.cos, torch.sin))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w[name]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        y = norm(x, f"{at}input_layernorm.weight")
        q, k, v = ((y @ w[f"{at}self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, head)) for name in ("q", "k", "v"))
        k, v = rotated(k).repeat_interleave(HEADS // GROUPS, 2), v.repeat_interleave(HEADS // GROUPS, 2)
        scores = torch.einsum("bthd,bshd->bhts", rotated(q), k) * head**-0.5
        scores = scores.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -torch.inf)
        mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).flatten(2)
        x = x + mixed @ w[f"{at}self_attn.o_proj.weight"].T
        y = norm(x, f"{at}post_attention_layernorm.weight")
        gate, up = (y @ w[f"{at}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (torch.nn.functional.silu(gate) * up) @ w[f"{at}mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ w["model.embed_tokens.weight"].T


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_perplexities(tmp_path: Path, dtype: str) -> None:
    manifest = make_workspace(tmp_path)
    text = manifest.read_text().replace("mode: convert,", f"mode: convert, dtype: {dtype},")
    manifest.write_text(text.replace("strategy: upcycle.global,", f"strategy: upcycle.global, dtype: {dtype},"))
    with pytest.raises(SystemExit) as ended:
        main(["run", str(manifest), "--output", str(tmp_path / "runs")])
    assert not ended.value.code
    group = tmp_path / "runs" / "small" / "half"
    likelihoods = np.load(group / "convert" / "evaluation" / "teacher.npy")
    assert likelihoods.dtype == np.dtype(dtype)
    ids = torch.from_numpy(np.load(tmp_path / "heldout.npy")[: 4 * 32].astype(np.int64)).view(4, 32)
    found = logits(load_file(tmp_path / "teacher" / "model.safetensors"), ids)
    wanted = torch.nn.functional.cross_entropy(found[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    error = np.abs(likelihoods.ravel() - wanted.numpy()).max()
    assert (error < 1e-12) == (dtype == "float64"), error
    newest = max((group / "finetune" / "checkpoints").iterdir())
    trained = load_file(newest / "model.safetensors")["model.blocks.0.attention.v_proj"]
    assert trained.dtype == getattr(torch, dtype)
    assert json.loads((group / "finetune" / "summary.json").read_text())["dtype"] == dtype
