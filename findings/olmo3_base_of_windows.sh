#!/usr/bin/env bash
# transformers 5.23.0: an Olmo 3 configuration in the words of its own checkpoints (`rope_theta` beside `rope_scaling`)
# gives `rope_theta` to the layers with full attention alone.  Those with a window, three of four, turn with the default
# base of 500,000, whatever the file says.
#
# Seen, for `rope_theta` 10,000 and yarn beside it: full_attention has the base 10,000, sliding_attention 500,000.  The
# released checkpoints say 500,000, so that theirs is the same; one that was trained with another base is another model.
#
# What follows for users: write `rope_parameters` by layer type, which is read as it stands.  Exit code 0 while this is
# so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.13.0
cd "$folder"
venv/bin/python - <<'PY'
import json
import sys
from pathlib import Path

from transformers import AutoConfig

scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
file = {"model_type": "olmo3", "max_position_embeddings": 32768, "rope_theta": 10000.0, "rope_scaling": scaling}
Path("config.json").write_text(json.dumps(file))
read = AutoConfig.from_pretrained(".").rope_parameters
seen = {kind: read[kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")}
print(json.dumps(seen))
sys.exit(0 if seen == {"full_attention": 10000.0, "sliding_attention": 500000.0} else 1)
PY
