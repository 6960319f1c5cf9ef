#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: a mask of booleans with four axes, which LlamaForCausalLM takes with sdpa as "True is
# seen", hides nothing with attn_implementation="eager": True is added to the scores as 1, and False as 0.
#
# Seen: with the causal mask as booleans, sdpa gives the logits of no mask (difference 0.0); eager differs by 7.19, and its
# first token changes by 2.17 when the last one does.
#
# What follows for users: masks of their own must be terms of the scores (0 and the least number) where attention may be
# eager, as it is for output_attentions.  Exit code 0 while this is so, 1 once it has changed.
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
mask = torch.ones(1, 1, 12, 12, dtype=torch.bool).tril()
seen = {}
with torch.no_grad():
    causal = model(ids).logits
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        found = model(ids, attention_mask=mask).logits
        later = model(torch.cat([ids[:, :-1], (ids[:, -1:] + 1) % 64], dim=1), attention_mask=mask).logits
        seen[f"{implementation}: against no mask"] = round(float((found - causal).abs().max()), 4)
        seen[f"{implementation}: first token, when the last one changes"] = round(
            float((found - later)[:, 0].abs().max()), 4
        )
print(json.dumps(seen, indent=2))
sys.exit(0 if all((value > 0.1) is name.startswith("eager") for name, value in seen.items()) else 1)
PY
