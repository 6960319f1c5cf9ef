#!/usr/bin/env bash
# lm-eval 0.4.13: the model "hf" keeps logits for requests whose context and continuation, without its last token, are the same
# tokens (logits_cache, on by default), and cuts them for the continuation of the first of these requests.  Another one of
# them may have a shorter or longer continuation: it is scored at the wrong place, in silence.
#
# Seen: two requests, "a b" + " c d" and "a b c" + " e", that both end behind "a b c".  Together the second one gets the
# log-likelihood of "e" behind "a b"; alone, or with logits_cache=False, that behind "a b c".
#
# What follows for users: tasks whose contexts extend one another (sliding or partial contexts, cloze over a running text)
# may get other scores than the model gives; pass logits_cache=False.  Exit code 0 while this is so, 1 once it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 lm_eval==0.4.13
cd "$folder"
cat > scores.py <<'PY'
from types import SimpleNamespace

import torch
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<end>", "a", "b", "c", "d", "e"]
backend = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token="<end>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=len(words),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    initializer_range=0.3,
    bos_token_id=None,
    eos_token_id=0,
)
model = LlamaForCausalLM(config).eval()
first, second = (SimpleNamespace(args=pair) for pair in (("a b", " c d"), ("a b c", " e")))


def scored(*requests, **options):
    harness = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", dtype="float32", **options)
    return harness.loglikelihood(list(requests), disable_tqdm=True)[-1][0]


with torch.no_grad():
    true = model(torch.tensor([[1, 2, 3]])).logits[0].log_softmax(-1)[:, 5]
alone, together, plain = scored(second), scored(first, second), scored(first, second, logits_cache=False)
print(f"e behind a b c: {true[2]:.4f}, behind a b: {true[1]:.4f}")
print(f"alone {alone:.4f}, together {together:.4f}, together with logits_cache=False {plain:.4f}")
near = [abs(x - y) < 1e-4 for x, y in ((alone, true[2]), (plain, true[2]), (together, true[1]))]
raise SystemExit(not (all(near) and abs(true[1] - true[2]) > 1e-2))
PY
venv/bin/python scores.py 2> errors || { cat errors; exit 1; }
