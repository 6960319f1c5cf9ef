"""The page ``docs/checkpoints.md``, made from the tables that the readers use.

python scripts/checkpoints.py           # says whether it is up to date
python scripts/checkpoints.py --write   # writes it anew
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from caramba_plugins_llama.families import ARCHITECTURES, FAMILIES, REFUSED, Family
from caramba_plugins_llama.gguf_tokenizer import RULES, Words
from caramba_plugins_llama.known_keys import KnownKeys

from caramba_plugins_llama import gguf_header, known_keys, safetensors_file

__all__ = ["PAGE", "page"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "checkpoints.md"
LLAMA_CPP = "2026.10.11549"
"""Of the package ``xllamacpp``, whose llama.cpp the tests of GGUF files were run against."""


def code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def keys(known: KnownKeys) -> str:
    """What is done with the keys of one kind of description."""
    rows = [("read", code(known.read)), ("without effect on logits", code(known.ignored))]
    for key, (values, reason) in known.fixed.items():
        only = f"only {code(map(repr, values))}" if values else "refused"
        rows.append((f"`{key}`", f"{only}; otherwise {reason}" if values else f"{only}: {reason}"))
    return table(("key", ""), rows)


def beyond(family: Family) -> str:
    """What a family's data say that Llama's do not."""
    period = f"`{family.period}`" if isinstance(family.period, str) else str(family.period)
    said = {
        f"norms {family.norm_places} attention and MLP": family.norm_places != "before",
        "norms of 1 + weight": family.norm_offset != 0,
        "norms of queries and keys": family.qk_norm == "head",
        "norms of queries and keys over all heads": family.qk_norm == "all",
        "MLP without gate": not family.gated,
        f"factors of {', '.join(family.factors)}": bool(family.factors),
        "windows": family.window in ("always", "by_layer", "from_layer", "without_rope"),
        f"windows in all but one of {period} layers": family.window == "pattern",
        "layers without rotary positions": family.rope_layers == "marked",
        "rotary positions in layers with a window": family.rope_layers == "with_window",
        "rotary positions by type of layer": family.rope_by_type is not None,
        "a part of each head turns": family.partial_rotary,
        "adjacent pairs": family.adjacent_pairs,
        "latent attention (of `caramba-plugins-mla`), dense layers alone": family.latent_norm_eps is not None,
        f"fused {code(family.fused)}": bool(family.fused),
    }
    return "; ".join(words for words, holds in said.items() if holds)


def families() -> str:
    """One row a family, and one for each that is refused."""
    rows = []
    for family in FAMILIES.values():
        own = [key for key in family.keys.read if key not in known_keys.CONFIG.read]
        refused = [f"`{key}`" for key in family.keys.fixed if key not in known_keys.CONFIG.fixed]
        defaults = [f"`{key}` {value}" for key, value in family.defaults.items()]
        rows.append((f"`{family.model_type}`", beyond(family), code(own), ", ".join(refused), ", ".join(defaults)))
    head = ("family", "beyond a Llama", "keys of its own", "keys that it does not have", "where the file is silent")
    read = table(head, rows)
    return f"{read}\n\n{table(('refused', 'because'), ((f'`{name}`', why) for name, why in REFUSED.items()))}"


def rope() -> str:
    rows = []
    for name, (_, required, optional, ignored) in known_keys.ROPE_TYPES.items():
        rows.append((f"`{name}`", code(required), code(optional), code(ignored)))
    return table(("rope type", "needs", "may have", "without effect"), rows)


def words() -> str:
    """One row a rule, with all of its names."""
    names: dict[Words, list[str]] = {}
    for name, rule in RULES.items():
        names.setdefault(rule, []).append(name)
    rows = []
    for rule, called in names.items():
        more = [("digits apart", rule.digits), ("whole words first", rule.whole), ("NFC", rule.composed)]
        patterns = " then ".join(f"`{pattern}`" for pattern in rule.patterns).replace("|", "\\|") or "as GPT-2"
        rows.append((code(called), patterns, ", ".join(note for note, holds in more if holds)))
    return table(("`tokenizer.ggml.pre`", "words", ""), rows)


def page() -> str:
    """The whole page."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    versions = [
        f"{name} {found[1]}"
        for name in ("transformers", "tokenizers", "gguf", "safetensors")
        if (found := re.search(rf"^{name}==(\S+)$", constraints, re.MULTILINE))
    ]
    architectures = ", ".join(f"`{name}` as `{a.model_type}`" for name, a in ARCHITECTURES.items())
    read = [name for name, _, _ in gguf_header.TYPES.values()]
    return f"""\
# What is read of a checkpoint, and what is refused

Every key of `config.json`, `generation_config.json` and GGUF metadata is known or refused: a reader that skips a key
may read another model than the file's.  A key is read, or it cannot change logits, or it is accepted at one value
alone; any other ends the run with its name.  This page is made from the readers' own tables
(`python scripts/checkpoints.py --write`), and the tests hold both to these references:
{", ".join(versions)}, llama.cpp (in xllamacpp {LLAMA_CPP}; its tests run where it is installed).

## Families

{families()}

Rows of queries and keys are brought into one order within a head, and fused projections are taken apart, on reading;
exports put them back.  `bench/families.py` holds every family against transformers
([figures](measurements/2026-11-29-families.md)).

A `mistral` with `layer_types` is read as `ministral`, as transformers does.  Where `tie_word_embeddings` is true, the
weights decide, as in transformers: a head with values of its own is used, and a head alone stands for both.  Keys of
weights may lack the prefix `model.`; names that an index lists and nobody needs are passed over.

## `config.json`

{keys(known_keys.CONFIG)}

{rope()}

Where a rotary setting is given twice, the one that transformers follows counts: `rope_scaling` before
`rope_parameters`, inside of the mapping before beside it, except for `original_max_position_embeddings`.

## `generation_config.json`

{keys(known_keys.GENERATION)}

## Types of safetensors

Read: {code(safetensors_file.TYPES)}.  Named as sound, and not read: {code(safetensors_file.UNREAD)}.

## GGUF

Architectures: {architectures}.  Under the architecture's prefix:

{keys(known_keys.GGUF)}

Beside it:

{keys(known_keys.GGUF_OUTSIDE)}

Optional keys mean what they mean in llama.cpp: as many keys as queries without `attention.head_count_kv`, heads of
`embedding_length / attention.head_count` without `attention.key_length`, linear scaling without `rope.scaling.type`.
A list with one size for all layers is that size.  Offsets that some layers or projections lack are zero there.  The
parts of a split file are read together, whichever of them is named.  Rotary factors (`rope_freqs.weight`) are read
as Llama 3's where they are, else as a list; longrope's two lists are refused, since they change with the length of the
text.

Types: {code(read)}.  Named as sound, and not read: {code(gguf_header.UNREAD.values())}.

## Tokenizers of GGUF files

`tokenizer.ggml.model` is `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).  A tokenizer that cannot be read is
none: the run says so once, and goes on with token arrays.

{keys(known_keys.TOKENIZER)}

{words()}

A file without a rule has `default`, as in llama.cpp.  Ids are those of llama.cpp, with two exceptions, in which the
tokenizer that the model was trained with is followed: text of `qwen2` is composed (NFC), and `tekken`, `gpt-4o` and
`llama4` know case and combining marks outside of ASCII.

## Tokenizers of folders

`tokenizer.json` counts.  transformers 5.23.0 puts the normalizer and pre-tokenizer of its own class in their place
where `tokenizer_config.json` says `tokenizer_class: LlamaTokenizer`; texts with leading or doubled blanks may get
other ids there (`findings/llama_tokenizer_class_drops_normalizer.sh`).

## Where a text begins and ends

BOS stands before every text and prompt where the checkpoint's tokenizer puts it.  For a folder: where the
post-processor of `tokenizer.json` does, or else `add_bos_token` is true, which {versions[0]} reads for tokenizers
without `tokenizer.json` alone (`findings/add_bos_token_of_a_folder_is_not_read.sh`).
For GGUF: where `tokenizer.ggml.add_bos_token` says so, or else where llama.cpp does by
default, which is with SentencePiece and with the rules {code(name for name, words in RULES.items() if words.bos)}.
`add_bos` of a text and of mode `generate`, and `--add-bos` or `--no-bos` of `caramba data prepare`, choose otherwise.

A generated text ends at the ids of `eos_token_id` in `generation_config.json`, or else in `config.json`, or else at the
tokenizer's end of sequence; of GGUF at the ids of `eos`, `eot` and `eom`, and at tokens that llama.cpp knows as ends by
their names (`<|im_end|>`, `<|eot_id|>`, ...).  `ignore_eos: true` goes on behind them.

What spells a special token in a text is text; `special_tokens: true` (`--special-tokens`) reads it as the token.  In
prompts it is the token, unless `special_tokens: false` is set.
"""


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    print("up to date" if old == page() else "written" if "--write" in sys.argv else "stale: run again with --write")
    sys.exit(0 if old == page() or "--write" in sys.argv else 1)
