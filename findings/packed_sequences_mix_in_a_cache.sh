#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: sequences packed in one row, and told apart by position_ids that start again, as
# DataCollatorWithFlattening makes them, are kept apart by LlamaForCausalLM with use_cache=False alone.  With the default of
# a pass, which fills a new cache, they see each other, with sdpa as with eager attention.
#
# Seen: logits of two sequences of six tokens in one row are those of each alone without a cache (difference 0.0), and
# differ by up to 7.02 with one.
#
# What follows for users: measuring packed texts with model(input_ids, position_ids=...) needs use_cache=False, as Trainer
# sets it.  Exit code 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
venv/bin/python - <<'PY'
import json
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.3,
)
model = LlamaForCausalLM(config).eval()
ids = torch.randint(0, 64, (1, 12))
positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]])
seen = {}
with torch.no_grad():
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        alone = torch.cat([model(part).logits for part in ids.split(6, dim=1)], dim=1)
        for use_cache in (False, True):
            found = model(ids, position_ids=positions, use_cache=use_cache).logits
            seen[f"{implementation}, use_cache={use_cache}"] = round(float((found - alone).abs().max()), 4)
print(json.dumps(seen, indent=2))
sys.exit(0 if all((value > 0.1) is ("True" in name) for name, value in seen.items()) else 1)
PY
