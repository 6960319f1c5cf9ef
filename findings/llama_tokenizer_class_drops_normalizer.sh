#!/usr/bin/env bash
# transformers 5.23.0 with tokenizers 0.23.3: a folder whose tokenizer_config.json says `tokenizer_class: LlamaTokenizer`
# is not tokenized as its tokenizer.json says.  AutoTokenizer keeps vocabulary and merges and puts the class's own
# pre-tokenizer and normalizer in the place of the file's.  With PreTrainedTokenizerFast the file counts.
#
# Seen: a tokenizer.json with the normalizer Prepend("▁") + Replace(" ", "▁") and no pre-tokenizer gives for " ab" the tokens
# ["▁", "▁ab"] in `tokenizers` and with PreTrainedTokenizerFast, and ["▁ab"] with LlamaTokenizer.
#
# What follows for users: ids made with `tokenizers` from the file and ids made by AutoTokenizer can differ for texts with
# leading or doubled blanks.  Exit code 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
venv/bin/python - <<'PY'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers
from transformers import AutoTokenizer

vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"])}
plain = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("▁", "ab")], unk_token="<unk>"))
plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
seen = {"tokenizers": plain.encode(" ab", add_special_tokens=False).tokens}
for name in ("PreTrainedTokenizerFast", "LlamaTokenizer"):
    place = Path(name)
    place.mkdir()
    plain.save(str(place / "tokenizer.json"))
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    (place / "config.json").write_text(json.dumps({"model_type": "llama"}))
    loaded = AutoTokenizer.from_pretrained(place)
    seen[name] = loaded.convert_ids_to_tokens(loaded(" ab", add_special_tokens=False)["input_ids"])
print(json.dumps(seen, ensure_ascii=False))
file = ["▁", "▁ab"]
sys.exit(0 if seen == {"tokenizers": file, "PreTrainedTokenizerFast": file, "LlamaTokenizer": ["▁ab"]} else 1)
PY
