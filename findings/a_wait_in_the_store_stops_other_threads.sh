#!/usr/bin/env bash
# torch 2.13.0: while one thread waits for a key in a torch.distributed.TCPStore, every other call on that store object
# waits with it, `check()` too, which returns at once otherwise: a client has one connection and one lock for it.  A
# PrefixStore of it shares both.  So a thread that looks whether the other processes are alive sees nothing as long as
# the main thread is in `init_process_group`, which waits in the store that it is given, for hours if so told.
#
# Seen: a check beside a wait of 4 s took 3.5 s through the same store and through a PrefixStore, 0.0 s through clone().
#
# What follows for users: give `init_process_group` a `store.clone()`, and keep the store itself for what must answer.
# Exit code 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
cat > "$folder/store.py" <<'PYTHON'
import threading
import time
from datetime import timedelta

import torch.distributed as dist

server = dist.TCPStore("127.0.0.1", 0, None, True)
client = dist.TCPStore("127.0.0.1", server.port, None, False)


def wait():
    try:
        client.wait(["never set"], timedelta(seconds=4))
    except dist.DistError:
        pass


def seconds_to_check(store):
    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.5)  # it waits by now
    began = time.monotonic()
    store.check(["a key"])
    taken = time.monotonic() - began
    waiting.join()
    return round(taken, 1)


same, prefixed, cloned = map(seconds_to_check, (client, dist.PrefixStore("prefix", client), client.clone()))
print("same store", same, "prefix", prefixed, "clone", cloned)
raise SystemExit(not (same > 2 and prefixed > 2 and cloned < 1))
PYTHON
"$folder/venv/bin/python" "$folder/store.py" 2> /dev/null
