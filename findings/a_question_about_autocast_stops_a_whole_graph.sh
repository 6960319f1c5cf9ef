#!/usr/bin/env bash
# torch 2.11.0 and 2.13.0: torch.amp.is_autocast_available, the documented way to ask whether a device knows autocast (without
# it torch.is_autocast_enabled raises for the meta device), cannot be traced by torch.compile(fullgraph=True) in the one, and is
# a constant in the other.  torch.is_autocast_enabled, beside it in the documentation, is traced by both.
#
# Seen, with the backend "eager" on a CPU: 2.11.0 ends in torch._dynamo.exc.Unsupported for the first question and gives the
# second; 2.13.0 gives both.  Without fullgraph the first one breaks the graph in two, and says nothing.
#
# What follows for users: a model that was tried with the newest torch alone may not decode compiled on the torch that a
# cluster has.  caramba asks whether the device is meta instead.  Exit code 0 while this is so, 1 once it has changed.
# Installs two builds of torch with their libraries, about 8 GB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/question.py" <<'PY'
import json

import torch


def available(x):
    return x + 1 if torch.amp.is_autocast_available(x.device.type) else x


def enabled(x):
    return x + 1 if torch.is_autocast_enabled(x.device.type) else x


said = [torch.__version__.partition("+")[0]]
for question in (available, enabled):
    try:
        torch.compile(question, fullgraph=True, backend="eager")(torch.zeros(2))
        said.append("traced")
    except torch._dynamo.exc.Unsupported:
        said.append("Unsupported")
print(json.dumps(said))
PY
said=""
for version in 2.11.0 2.13.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "torch==$version" 2>/dev/null
    line=$("$folder/$version/bin/python" "$folder/question.py" 2>/dev/null)
    echo "$line"
    said+="$line;"
done
test "$said" = '["2.11.0", "Unsupported", "traced"];["2.13.0", "traced", "traced"];'
