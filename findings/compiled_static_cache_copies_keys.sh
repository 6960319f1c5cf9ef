#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: a decode step with a static cache gives scaled_dot_product_attention the cache's own
# key/value heads while it is not compiled, but a copy of them for every query head once torch.compile traces it: there the
# step has a mask, and masked grouped heads are avoided for the sake of kernels that have no compiler behind them.
#
# Seen: 8 query heads over 2 key/value heads; the attention is given 2 heads of keys in an ordinary step, 8 in a compiled
# one, and 2 again in a compiled one with TRANSFORMERS_SDPA_FORCE_GQA=1.
#
# What follows for users: compare speeds with the variable set.  On one NVIDIA H200 (torch 2.11.0, Llama-3.2-1B shape, 32
# sequences of 16,384 tokens, bfloat16) a compiled step takes 5.35 ms with it and 38.88 ms without; a model whose fewer
# key/value heads are wider can come out slower than the one that it replaces, though its cache is half.  Exit code 0 while
# this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
cat > heads.py <<'PY'
import sys

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
).eval()
heads = []


class Watched(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is scaled_dot_product_attention:
            heads.append(args[1].shape[1])
        return function(*args, **(kwargs or {}))


def watched(graph, inputs):
    for node in graph.graph.nodes:
        if node.target is scaled_dot_product_attention:
            heads.append(node.args[1].meta["example_value"].shape[1])
    return graph.forward


with torch.no_grad():
    cache = StaticCache(config=model.config, max_cache_len=32)
    model(torch.randint(0, 64, (1, 5)), past_key_values=cache, use_cache=True)
    token = torch.randint(0, 64, (1, 1))
    if sys.argv[1] == "compiled":
        torch.compile(model.forward, backend=watched, fullgraph=True)(token, past_key_values=cache, use_cache=True)
    else:
        with Watched():
            model(token, past_key_values=cache, use_cache=True)
print(*heads)
PY
ordinary=$(venv/bin/python heads.py ordinary)
compiled=$(venv/bin/python heads.py compiled)
forced=$(TRANSFORMERS_SDPA_FORCE_GQA=1 venv/bin/python heads.py compiled)
echo "heads of keys: ordinary $ordinary, compiled $compiled, compiled with TRANSFORMERS_SDPA_FORCE_GQA=1 $forced"
[ "$ordinary $compiled $forced" = "2 8 2" ]
