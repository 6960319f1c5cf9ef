"""A folder with a tiny Llama checkpoint, token arrays and a manifest over them: the main job in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from caramba_core.cli import main

VOCABULARY, WIDTH, LAYERS, HEADS, GROUPS, HIDDEN = 64, 32, 3, 4, 2, 48

MANIFEST = """\
version: 1
name: small
vars: {layers: 3, sem: 4, geo: 8, values: 10, lr: 1.0e-3, steps: 6, trains: [attention, norm]}
model:
  type: transformer
  tied_embeddings: true
  embedder: {type: token, vocab_size: 64, d_model: 32}
  topology:
    type: stacked
    layers:
      - type: nested
        name: blocks
        repeat: ${layers}
        layers:
          - type: residual
            layers:
              - {type: rms_norm, eps: 1.0e-5}
              - {type: dba, n_heads: 4, n_kv_heads: 2, head_dim: 8, sem_dim: "${sem}", geo_dim: "${geo}",
                 v_dim: "${values}", rope: {theta: 100.0}, o_bias: true}
          - {type: residual, layers: [{type: rms_norm, eps: 1.0e-5}, {type: swiglu, d_ff: 48}]}
      - {type: rms_norm, eps: 1.0e-5}
groups:
  - name: half
    teacher: {source: teacher}
    data: {train: train.npy, heldout: heldout.npy}
    eval: {windows: 4, context: 32}
    runs:
      - {id: convert, mode: convert, seed: 3, start: {tokens: 512, max_context: 32}}
      - id: finetune
        mode: train
        seed: 3
        steps: ${steps}
        train: {strategy: upcycle.global, trains: "${trains}", device: cpu, batch_size: 2, context: 32, lr: "${lr}",
                checkpoint_every: 2}
"""


def make_workspace(folder: Path, *, seed: int = 0) -> Path:
    """Fill the folder; the path of the manifest."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int, scale: float = 0.2) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    head = WIDTH // HEADS
    tensors = {"model.embed_tokens.weight": drawn(VOCABULARY, WIDTH), "model.norm.weight": torch.ones(WIDTH)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": torch.ones(WIDTH),
            f"{prefix}.post_attention_layernorm.weight": torch.ones(WIDTH),
            f"{prefix}.self_attn.q_proj.weight": drawn(WIDTH, WIDTH),
            f"{prefix}.self_attn.k_proj.weight": drawn(GROUPS * head, WIDTH),
            f"{prefix}.self_attn.v_proj.weight": drawn(GROUPS * head, WIDTH),
            f"{prefix}.self_attn.o_proj.weight": drawn(WIDTH, WIDTH),
            f"{prefix}.mlp.gate_proj.weight": drawn(HIDDEN, WIDTH),
            f"{prefix}.mlp.up_proj.weight": drawn(HIDDEN, WIDTH),
            f"{prefix}.mlp.down_proj.weight": drawn(WIDTH, HIDDEN),
        }
    (folder / "teacher").mkdir()
    save_file(tensors, folder / "teacher" / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": head,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "teacher" / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)
    # a text with structure, so that training has something to learn: a noisy walk over the vocabulary
    for name, size in (("train", 4000), ("heldout", 400)):
        steps = random.choice([1, 2, 5], size=size, p=[0.6, 0.3, 0.1])
        np.save(folder / f"{name}.npy", (np.cumsum(steps) % VOCABULARY).astype(np.uint16))
    (folder / "manifest.yml").write_text(MANIFEST)
    return folder / "manifest.yml"


def run(manifest: Path, *arguments: str) -> int:
    """``caramba run`` with its runs beside the manifest; the exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["run", str(manifest), "--output", str(manifest.parent / "runs"), *arguments])
    return int(ended.value.code or 0)


def folder_of(manifest: Path, name: str = "finetune") -> Path:
    """The folder of one of its runs."""
    return manifest.parent / "runs" / "small" / "half" / name
