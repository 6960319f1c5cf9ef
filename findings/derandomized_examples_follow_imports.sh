#!/usr/bin/env bash
# Hypothesis 6.170.15: derandomize=True does not draw the same examples in every process.  One draw in twenty may be a
# constant from the source of whatever local modules (neither Python's nor in site-packages, nor tests) sys.modules holds
# at that moment, so the examples of an unchanged test follow what else its process has imported.
#
# Seen: one derandomized test of 300 integers draws the same in two processes; in a third, which has imported one more
# module of the project that the test does not use, it draws others, among them a number that only that module contains.
#
# What follows for users: a suite that runs in parallel gives its tests to workers with different imports, so a
# derandomized property test can fail in one run and pass in the next, of the same code.  Exit code 0 while this is so, 1
# once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check hypothesis==6.170.15
cd "$folder"
mkdir project
cat > project/prices.py <<'PY'
CODES = [987654301, 987654303, 987654307, 987654311]
PY
cat > project/draws.py <<'PY'
import json
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

if "more" in sys.argv:
    import prices  # noqa: F401

drawn = []


@settings(derandomize=True, max_examples=300, database=None)
@given(st.integers())
def draw(number):
    drawn.append(number)


draw()
print(json.dumps(drawn))
PY
cat > compare.py <<'PY'
import json
import subprocess
import sys


def drawn(*arguments):
    done = subprocess.run(
        [sys.executable, "project/draws.py", *arguments], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


first, second, third = drawn(), drawn(), drawn("more")
numbers = {987654301, 987654303, 987654307, 987654311}
print("two processes draw the same:", first == second)
print("with one more import the draws are others:", first != third)
print("constants of that module among them:", sorted(numbers & {abs(one) for one in third}))
sys.exit(not (first == second and first != third and numbers & {abs(one) for one in third}))
PY
"$folder/venv/bin/python" compare.py
