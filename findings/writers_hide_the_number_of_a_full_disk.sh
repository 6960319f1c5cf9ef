#!/usr/bin/env bash
# numpy 2.4.6 and safetensors 0.8.0: where a file has no room, their writers raise errors without the system's number.
# A plain file.write of the same bytes raises OSError with errno 27 (EFBIG) here, as it does with 28 (ENOSPC) on a full disk.
# numpy.save and ndarray.tofile raise OSError with errno None, and say how many values were written; safetensors raises
# SafetensorError, which is no OSError at all and has the number in its text alone.
#
# What follows for users: a program that tells "no space left" from other failures by errno, as long runs do, takes both
# for internal errors.  Writing array.tobytes() behind numpy's header, and reading the number out of safetensors' text,
# tells them again.  A limit on the size of files stands for the full disk.  Exit code 0 while this is so, 1 once it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 safetensors==0.8.0
cd "$folder"
venv/bin/python - <<'PY'
import json
import resource
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
values = np.zeros(100_000)
seen = {}
for name, write in {
    "file.write": lambda: Path("a").write_bytes(values.tobytes()),
    "numpy.save": lambda: np.save("b.npy", values),
    "ndarray.tofile": lambda: values.tofile("c"),
    "safetensors": lambda: save_file({"a": values}, "d.safetensors"),
}.items():
    try:
        write()
    except Exception as error:
        seen[name] = [type(error).__name__, isinstance(error, OSError), getattr(error, "errno", None), str(error)[:60]]
print(json.dumps(seen))
kinds = {name: told[:3] for name, told in seen.items()}
nameless = ["OSError", True, None]
expected = {
    "file.write": ["OSError", True, 27],
    "numpy.save": nameless,
    "ndarray.tofile": nameless,
    "safetensors": ["SafetensorError", False, None],
}
sys.exit(0 if kinds == expected else 1)
PY
