#!/usr/bin/env bash
# transformers 5.23.0 with accelerate 1.15.0 and torch 2.13.0: Trainer with label_smoothing_factor trains a causal language
# model of another class name than those of the library to predict the token that it was just given.  Whether labels are
# shifted for the smoothed loss is decided by the name of the model's class (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), so that
# neither a subclass of LlamaForCausalLM nor a model with remote code is shifted.  Without smoothing the model itself
# shifts, and both agree.
#
# Seen: a Llama and a subclass of it with the same weights and no code of its own have the loss 4.1503 without smoothing, and
# with a factor of 0.1 the losses 4.1518 and 4.4546.  The latter is that of the same token, divided by the number of
# labels that have a token before them (15 of 16).
#
# What follows for users: fine-tuning with label smoothing spoils such a model without a word.  A remedy is to add the name
# to MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.  Exit code 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 accelerate==1.15.0
cd "$folder"
venv/bin/python - <<'PY'
import json
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class MyLlamaForCausalLM(LlamaForCausalLM):
    """Nothing but another name."""


torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
model = LlamaForCausalLM(config)
same = MyLlamaForCausalLM(config)
same.load_state_dict(model.state_dict())
rows = [{"input_ids": (ids := torch.randint(0, 64, (16,)).tolist()), "labels": ids} for _ in range(4)]
seen = {}
for smoothing in (0.0, 0.1):
    for one in (model, same):
        arguments = TrainingArguments(
            output_dir="out", label_smoothing_factor=smoothing, report_to="none", use_cpu=True, disable_tqdm=True
        )
        loss = Trainer(model=one, args=arguments).evaluate(rows)["eval_loss"]
        seen[f"{type(one).__name__}, smoothing {smoothing}"] = round(loss, 4)


@torch.no_grad()
def by_hand(shift: bool) -> float:
    """Smoothed over what is predicted, divided by the number of labels that have a token before them."""
    ids = torch.tensor([row["input_ids"] for row in rows])
    logits, labels = model(ids).logits, ids
    logits, labels = (logits[:, :-1], ids[:, 1:]) if shift else (logits, ids)
    logits, labels = logits.flatten(0, 1).log_softmax(-1), labels.flatten()
    chosen = torch.nn.functional.nll_loss(logits, labels, reduction="sum")
    return round(float(0.9 * chosen - 0.1 * logits.mean(-1).sum()) / ids[:, 1:].numel(), 4)


seen["by hand, next token"], seen["by hand, same token"] = by_hand(True), by_hand(False)
print(json.dumps(seen, indent=2))
plain = seen["LlamaForCausalLM, smoothing 0.0"] == seen["MyLlamaForCausalLM, smoothing 0.0"]
shifted = abs(seen["LlamaForCausalLM, smoothing 0.1"] - seen["by hand, next token"]) < 2e-3
unshifted = abs(seen["MyLlamaForCausalLM, smoothing 0.1"] - seen["by hand, same token"]) < 2e-3
apart = abs(seen["by hand, next token"] - seen["by hand, same token"]) > 0.1
sys.exit(0 if plain and shifted and unshifted and apart else 1)
PY
