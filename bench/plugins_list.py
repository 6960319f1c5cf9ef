"""How long ``caramba plugins list`` takes with few and with many plugins installed.

    python bench/plugins_list.py [--repeat 9]

Plugins are made up in a temporary folder, beside those that are installed.  Medians of fresh interpreters, wall time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def install(folder: Path, count: int) -> None:
    """Write the metadata of ``count`` plugins with one hook module and three components each."""
    for number in range(count):
        info = folder / f"caramba_plugin_made_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: caramba-plugin-made-{number}\nVersion: 1.0\n"
            "Requires-Dist: caramba-core>=0.1\n\nMade up.\n"
        )
        (info / "entry_points.txt").write_text(
            f"[caramba]\nmade{number} = made{number}.plugin\n\n[caramba.api]\n1.0 = made{number}.plugin\n\n"
            f"[caramba.attention]\nmade{number} = made{number}.attention:Attention\n\n"
            f"[caramba.layer]\nnorm{number} = made{number}.layers:Norm\nmlp{number} = made{number}.layers:Mlp\n"
        )


def seconds(arguments: list[str], environment: dict[str, str], repeat: int) -> list[float]:
    """Wall times of a command, the first run left out."""
    times = []
    for _ in range(repeat + 1):
        start = time.perf_counter()
        subprocess.run(arguments, env=environment, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return times[1:]


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9)
    repeat = parser.parse_args().repeat
    print(f"python {sys.version.split()[0]}, {os.cpu_count()} cores, medians of {repeat}")
    for count in (0, 10, 200):
        with tempfile.TemporaryDirectory() as folder:
            install(Path(folder), count)
            environment = {**os.environ, "PYTHONPATH": folder}
            for words in ("plugins list", "plugins list --json"):
                command = [sys.executable, "-m", "caramba", *words.split()]
                times = seconds(command, environment, repeat)
                print(
                    f"{count:4} made-up plugins  caramba {words:<20}  "
                    f"{statistics.median(times):.3f} s  (least {min(times):.3f})"
                )
    idle = seconds([sys.executable, "-c", "pass"], dict(os.environ), repeat)
    print(f"for comparison: python -c pass  {statistics.median(idle):.3f} s")


if __name__ == "__main__":
    main()
