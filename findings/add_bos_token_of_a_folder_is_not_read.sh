#!/usr/bin/env bash
# transformers 5.23.0 with tokenizers 0.23.3: `add_bos_token` in tokenizer_config.json does nothing where a tokenizer.json
# lies beside it, whatever the class.  The file's post-processor alone decides, and the loaded tokenizer's attribute
# `add_bos_token` is False even where every text gets BOS.
#
# Seen, for a tokenizer.json with and without a post-processor that puts <s> in front, and `add_bos_token` true and false:
# ids [0, 2] with the post-processor and [2] without, for both values; the attribute is False four times.
#
# What follows for users: the setting that older versions heeded (LlamaTokenizerFast) is passed over in silence, and a
# program that asks the attribute whether BOS is there is misled.  Exit code 0 while this is so, 1 once it has changed.
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

from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer

seen = {}
for name in ("PreTrainedTokenizerFast", "LlamaTokenizerFast"):
    for template in (True, False):
        for asked in (True, False):
            place = Path(f"{name}-{template}-{asked}")
            place.mkdir()
            plain = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2, "<unk>": 3}, [], unk_token="<unk>"))
            plain.add_special_tokens(["<s>", "</s>"])
            if template:
                plain.post_processor = processors.TemplateProcessing(
                    single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
                )
            plain.save(str(place / "tokenizer.json"))
            settings = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            (place / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": asked}))
            (place / "config.json").write_text(json.dumps({"model_type": "llama"}))
            loaded = AutoTokenizer.from_pretrained(place)
            seen[place.name] = [loaded("a")["input_ids"], loaded.add_bos_token]
print(json.dumps(seen))
expected = {name: [[0, 2] if "-True-" in name else [2], False] for name in seen}
sys.exit(0 if seen == expected else 1)
PY
