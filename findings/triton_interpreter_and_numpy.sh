#!/usr/bin/env bash
# triton 3.6.0 with numpy 2.4.6: Triton's interpreter (TRITON_INTERPRET=1) cannot run a loop whose bound is loaded from memory.
# It keeps every scalar as an array of one element and hands the bound to Python's range, which asks numpy for an int; numpy
# no longer makes one of an array with a dimension: "only 0-dimensional arrays can be converted to Python scalars".
# triton 3.8.0 runs the same kernel.  Compiled for a GPU, both versions take it.
#
# What follows for users: a kernel with data-dependent lengths (decoding over caches of unequal fill) that is tested on the
# CPU needs triton 3.8 there, although torch 2.11 for CUDA ships 3.6.  Exit code 0 while this is so, 1 once it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 torch==2.13.0
for version in 3.6.0 3.8.0; do
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$folder/$version" "triton==$version"
done
cat > "$folder/kernel.py" <<'PY'
import torch
import triton
import triton.language as tl


@triton.jit
def count(length, out):
    total = 0
    for _ in range(0, tl.load(length)):
        total += 1
    tl.store(out, total)


out = torch.zeros(1, dtype=torch.int32)
try:
    count[(1,)](torch.tensor([5], dtype=torch.int32), out)
    print(triton.__version__, "counted", out.item())
except Exception as error:
    print(triton.__version__, type(error).__name__, "0-dimensional" in str(error))
PY
for version in 3.6.0 3.8.0; do
    TRITON_INTERPRET=1 PYTHONPATH="$folder/$version" "$folder/venv/bin/python" "$folder/kernel.py"
done | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
3.6.0 InterpreterError True
3.8.0 counted 5
SEEN
