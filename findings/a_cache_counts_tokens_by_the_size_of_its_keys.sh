#!/usr/bin/env bash
# transformers 5.23.0 with torch 2.13.0: a layer of DynamicCache says how many tokens it holds by its keys, and takes keys
# without any elements for an empty cache, whatever its values hold.  An attention that caches one latent for keys and
# values, as its values with keys of width 0, is told at every step that nothing came before: positions and masks start
# again, and texts go on wrongly without an error.  The other way round, the latent as keys and values of width 0, counts.
#
# Seen: five tokens in a layer; keys of width 0 and values of width 4: get_seq_length() 0, and values of 5 tokens.  Keys of
# width 4 and values of width 0: get_seq_length() 5.  A static layer counts what was written to it: 5 both ways.
#
# What follows for users: a modeling file that caches one tensor a token puts it where keys stand, as caramba's exports of
# DBA with a joint latent and no rotary key do.  Exit code 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cd "$folder"
cat > counts.py <<'PY'
import sys

import torch
from transformers import DynamicCache
from transformers.cache_utils import StaticLayer


def dynamic(keys, values):
    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 5, keys), torch.ones(1, 1, 5, values), 0)
    return int(cache.get_seq_length()), tuple(cache.layers[0].values.shape)


def static(keys, values):
    layer = StaticLayer(max_cache_len=8)
    layer.update(torch.ones(1, 1, 5, keys), torch.ones(1, 1, 5, values), {"cache_position": torch.arange(5)})
    return int(layer.get_seq_length())


found = {
    "dynamic, keys of width 0": dynamic(0, 4),
    "dynamic, values of width 0": dynamic(4, 0),
    "static, keys of width 0": static(0, 4),
    "static, values of width 0": static(4, 0),
}
for name, value in found.items():
    print(f"{name}: {value}")
as_described = found["dynamic, keys of width 0"] == (0, (1, 1, 5, 4)) and found["dynamic, values of width 0"][0] == 5
as_described = as_described and found["static, keys of width 0"] == found["static, values of width 0"] == 5
print("as described" if as_described else "changed")
sys.exit(not as_described)
PY
"$folder/venv/bin/python" counts.py
