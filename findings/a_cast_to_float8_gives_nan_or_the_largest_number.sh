#!/usr/bin/env bash
# torch 2.11.0 and 2.13.0 on a CPU: Tensor.to(torch.float8_e4m3fn) of what is beyond its largest number, 448, gives NaN in the
# one (from 465 on, where rounding would pass it) and 448 in the other, for infinity too, which so is lost.  The same line of a
# program is a guard that shows an overflow in one version, and clips it in silence in the next.
#
# Seen: of 448, 464, 465, 10,000 and infinity torch 2.11.0 makes 448, 448 and three NaN; torch 2.13.0 five times 448.
#
# What follows for users: code that quantizes to float8 has to clamp by itself where it should run on both, and what checks
# for NaN behind a cast finds none any more.  Libraries that do not clamp give NaN on torch 2.11 where later torch gives a
# cut value: so QuantizedCache("fp8") of transformers 5.23.0 does, whose scale is that of the first tokens.
# Exit code 0 while this is so, 1 once it has changed.  Installs two builds of torch with their libraries, about 8 GB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/cast.py" <<'PY'
import json
import torch

x = torch.tensor([448.0, 464.0, 465.0, 10000.0, float("inf")])
print(json.dumps([torch.__version__.partition("+")[0], *map(str, x.to(torch.float8_e4m3fn).float().tolist())]))
PY
said=""
for version in 2.11.0 2.13.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "torch==$version" 2>/dev/null
    line=$("$folder/$version/bin/python" "$folder/cast.py" 2>/dev/null)
    echo "$line"
    said+="$line;"
done
test "$said" = '["2.11.0", "448.0", "448.0", "nan", "nan", "nan"];["2.13.0", "448.0", "448.0", "448.0", "448.0", "448.0"];'
