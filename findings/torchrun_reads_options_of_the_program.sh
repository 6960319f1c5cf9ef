#!/usr/bin/env bash
# torch 2.13.0: torchrun refuses options of the program that it starts where they begin like one of its own: `torchrun
# train.py --run a` ends with "ambiguous option: --run could match --run-path, --run_path", though `--run` stands behind
# the program's name.  argparse looks for abbreviations in all that is given before it looks for the rest of the line.
#
# Seen: exit code 2 and that message; with `--` in front of the program it runs, and is given `--run a`.
#
# What follows for users: write `torchrun OPTIONS -- train.py ...`, and `torchrun OPTIONS -m -- package ...` for a module.
# Exit code 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
cd "$folder"
echo 'import sys; print("given", sys.argv[1:])' > program.py
torchrun() { venv/bin/python -m torch.distributed.run --standalone --nproc-per-node 1 "$@" 2>&1 || true; }
refused=$(torchrun program.py --run a)
taken=$(torchrun -- program.py --run a)
tail -n 1 <<< "$refused"
tail -n 1 <<< "$taken"
grep -q "ambiguous option: --run could match" <<< "$refused" && grep -q "given \['--run', 'a'\]" <<< "$taken"
