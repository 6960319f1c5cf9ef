#!/usr/bin/env bash
# torch 2.13.0, CPU: under torch.autocast("cpu", dtype=torch.bfloat16) two float16 tensors cannot be joined.  torch.cat,
# torch.stack, hstack and index_copy raise RuntimeError "Unexpected floating ScalarType in at::autocast::prioritize", although
# both sides have one type and nothing has to be cast; under autocast in float16 two bfloat16 tensors cannot be either.
# Arithmetic on the same tensors is left alone, and so is torch.cat with out=.
#
# The documentation says that these three operations promote to the widest type of their inputs (CPU list; the list for CUDA
# does not have them), which a reader takes to mean that equal types stay.
#
# What follows for users: code that keeps anything in float16 beside a computation in bfloat16 (scales of a quantized cache,
# stored embeddings) runs on a GPU and raises on a CPU, where it is tried first.  caramba joins scales as float32 and fills
# rings by assignment.  Exit code 0 while this is so, 1 once it has changed.  Installs torch, about 4 GB with its libraries.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2>/dev/null
cat > "$folder/join.py" <<'PY'
import json

import torch

pairs = {name: [torch.ones(2, dtype=getattr(torch, name))] * 2 for name in ("float16", "bfloat16", "float32")}
first = torch.tensor([0])
ways = {
    "cat": torch.cat,
    "stack": torch.stack,
    "hstack": torch.hstack,
    "index_copy": lambda pair: pair[0].index_copy(0, first, pair[1][:1]),
    "cat with out": lambda pair: torch.cat(pair, out=pair[0].new_empty(0)),
    "add": lambda pair: pair[0] + pair[1],
}
said = {}
for computing in ("bfloat16", "float16"):
    with torch.autocast("cpu", dtype=getattr(torch, computing)):
        for held, pair in pairs.items():
            for way, join in ways.items():
                try:
                    join(pair)
                except RuntimeError as error:
                    assert "Unexpected floating ScalarType" in str(error), error
                    said.setdefault(f"{held} in {computing}", []).append(way)
print(torch.__version__.partition("+")[0], json.dumps(said, sort_keys=True))
PY
said=$("$folder/venv/bin/python" "$folder/join.py")
echo "$said"
refused='["cat", "stack", "hstack", "index_copy"]'
test "$said" = "2.13.0 {\"bfloat16 in float16\": $refused, \"float16 in bfloat16\": $refused}"
