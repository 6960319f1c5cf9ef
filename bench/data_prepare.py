"""``caramba data prepare`` beside ``tokenizers.encode_batch`` alone, on the same text and cores, in turn.

python bench/data_prepare.py TEXT SOURCE [ROUNDS]

SOURCE is a checkpoint that carries the tokenizer.  Each measurement is a process of its own and prints a line of JSON:
seconds, seconds of all cores together, tokens, and the most memory that was resident.  ``encode_batch`` is given the
lines of a text, 20,000 at a time, or the texts of a .jsonl file, 1,000 at a time, which are read before the clock
starts.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

WAYS = ("prepare", "encode_batch")


def measured(way: str, text: Path, source: str) -> dict[str, object]:
    """One way's figures; the tokenizer is read before the clock starts where the library is measured alone."""
    if way == "prepare":
        from caramba_plugins_standard.texts import FileTexts
        from caramba_plugins_standard.tokenizing import prepare

        with tempfile.TemporaryDirectory() as folder:
            began, processor = time.perf_counter(), time.process_time()
            tokens = prepare([FileTexts(text)], Path(folder) / "ids.npy", source).tokens
            seconds, processor = time.perf_counter() - began, time.process_time() - processor
    else:
        from caramba_plugins_standard.loading import open_source

        backend = open_source(source, Path()).tokenizer().backend  # type: ignore[union-attr]
        with text.open(encoding="utf-8", newline="\n") as lines:
            texts, size = (map(_text, lines), 1_000) if text.suffix == ".jsonl" else (lines, 20_000)
            batches = iter(lambda: list(islice(texts, size)), [])
            if size == 1_000:
                batches = iter(list(batches))
            began, processor, tokens = time.perf_counter(), time.process_time(), 0
            for some in batches:
                tokens += sum(len(one.ids) for one in backend.encode_batch(some, add_special_tokens=False))
            seconds, processor = time.perf_counter() - began, time.process_time() - processor
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    spent = {"seconds": round(seconds, 1), "processor_seconds": round(processor, 1)}
    return {"way": way, "bytes": text.stat().st_size, **spent, "tokens": tokens, "MiB": resident}


def _text(line: str) -> str:
    text: str = json.loads(line)["text"]
    return text


def main(text: str, source: str, rounds: str = "2") -> None:
    """Print a line of JSON for each measurement."""
    for _ in range(int(rounds)):
        for way in WAYS:
            command = [sys.executable, __file__, "one", way, text, source]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    if sys.argv[1] == "one":
        print(json.dumps(measured(sys.argv[2], Path(sys.argv[3]), sys.argv[4])))
    else:
        main(*sys.argv[1:])
