#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: a training step without padding leaves causality to scaled_dot_product_attention and
# gives it the key/value heads as they are, but makes a mask, and a copy of keys and values for every query head, once
# torch.compile traces it: a traced model cannot read positions to see that no sequences are packed.
#
# Seen, for 4 query heads over 2 key/value heads and no attention mask: no mask and 2 heads of keys in an ordinary step, a
# mask and 4 heads in a compiled one, and as in the ordinary one where create_causal_mask is made to give none.
#
# What follows for users: with a mask torch leaves the flash kernels; who compares speeds, or trains long texts, should
# keep it from making one.  Exit code 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
cat > mask.py <<'PY'
import json
import sys

import torch
import transformers
from transformers.models.llama import modeling_llama

config = transformers.LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    use_cache=False,
    attn_implementation="sdpa",
)
model = transformers.LlamaForCausalLM(config).train()
tokens, seen = torch.arange(16)[None], {}
called = torch.nn.functional.scaled_dot_product_attention


def watched(query, key, value, attn_mask=None, **more):
    found.append([attn_mask is not None, key.shape[1]])
    return called(query, key, value, attn_mask=attn_mask, **more)


torch.nn.functional.scaled_dot_product_attention = watched
for name in ("ordinary", "compiled", "compiled and told"):
    torch._dynamo.reset()
    if name == "compiled and told":
        modeling_llama.create_causal_mask = lambda *_, **__: None
    found = []
    step = model if name == "ordinary" else torch.compile(model, backend="eager")
    step(tokens, labels=tokens).loss.backward()
    seen[name] = found[-1]
print(json.dumps(seen))
sys.exit(0 if seen == {"ordinary": [False, 2], "compiled": [True, 4], "compiled and told": [False, 2]} else 1)
PY
venv/bin/python mask.py
