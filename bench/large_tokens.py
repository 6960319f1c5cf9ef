"""Opens ten billion token ids in sparse files: time and peak memory of a process that does nothing else.

    python bench/large_tokens.py [--tokens 10000000000] [--shards 100]

Prints one JSON line: seconds for ``open`` (a sample of the ids is read and hashed) and for one read at the end, and the
peak memory of the process, Python and numpy included.  Linux.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
from caramba_plugins_standard.datasets import TokenArray

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--tokens", type=int, default=10_000_000_000)
parser.add_argument("--shards", type=int, default=100)
arguments = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    size = arguments.tokens // arguments.shards
    for number in range(arguments.shards):
        with (Path(folder) / f"{number:05}.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<u2", "fortran_order": False, "shape": (size,)})
            file.truncate(file.tell() + 2 * size)
    began = time.perf_counter()
    tokens = TokenArray(path=folder).open(Path(), None)
    opened = time.perf_counter()
    digest = tokens.hash
    hashed = time.perf_counter()
    tokens.read(len(tokens.ids) - 5000, len(tokens.ids))
    read = time.perf_counter()
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
found = {
    "tokens": len(tokens.ids),
    "shards": arguments.shards,
    "open_seconds": round(opened - began, 3),
    "hash_seconds": round(hashed - opened, 3),
    "read_seconds": round(read - hashed, 6),
    "peak_bytes": 1024 * int(status["VmHWM"].split()[0]),
    "device": platform.processor() or platform.machine(),
    "numpy": np.__version__,
}
print(json.dumps(found))
