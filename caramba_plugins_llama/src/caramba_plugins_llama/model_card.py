"""The model card of an exported model: how to load it, what it was made from, and what its run measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from caramba_core import __version__
from caramba_plugins_llama.export_source import ExportSource
from caramba_plugins_llama.exporting import Folder

__all__ = ["model_card"]


_TOKENIZER: Final = """\
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}"{trust})
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=20)[0]))
"""


def model_card(
    name: str,
    folder: Folder,
    source: ExportSource,
    config: Mapping[str, Any],
    *,
    tokenizer: bool,
    exporter: str,
) -> str:
    """Markdown; numbers come from the run's ``summary.json`` alone.  ``tokenizer``: whether the folder holds one.

    ``exporter`` is the distribution whose exporter described the folder, and its version.
    """
    code = [file for file in folder.files if file.endswith(".py")]
    usage = folder.usage + (_TOKENIZER if tokenizer else "")
    trust = ", trust_remote_code=True" if code else ""
    parts = [
        _metadata(source, custom=bool(code)),
        f"# {name}\n",
        f"```python\n{usage.format(folder=_in_quotes(name), trust=trust).rstrip()}\n```\n",
        f'"{_in_quotes(name)}" is the path of this folder, or its name on a hub.\n',
    ]
    if code:
        parts.append(
            f"transformers has no such architecture: `trust_remote_code=True` runs {_listed(code, folder.files)}, "
            f"which lies in this folder and came with {exporter}.  Read it before, if the folder comes from somebody "
            "else.\n"
        )
    else:
        parts.append("Nothing in this folder is code: the classes of transformers run it.\n")
    if source.left_out:
        parts.append(f"The tokenizer's settings named code that is left out: {', '.join(source.left_out)}.\n")
    if not tokenizer:
        parts.append("The checkpoint that this model started from came without a tokenizer, and so does this folder.\n")
    if source.unfinished is not None:
        parts.append(f"**Not a finished run:** {source.unfinished}.\n")
    parts.append("## Made from\n")
    parts.append("\n".join(f"- {line}" for line in _made_from(source)) + "\n")
    rows = list(_rows(source.summary))
    if rows:
        parts.append("## Measured\n")
        parts.append(
            "\n".join(["| | teacher | start of the run | end of the run |", "|---|---|---|---|", *rows]) + "\n"
        )
        parts.append(_how(source))
    parts.append("## Made with\n")
    parts.append(_made_with(source.summary, config))
    return "\n".join(parts)


def _metadata(source: ExportSource, *, custom: bool) -> str:
    """What hubs read of a card; texts as JSON, which is YAML."""
    found: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["caramba", *(["custom_code"] if custom else [])],
        "license": "unknown",
    }
    if source.teacher is not None:
        found |= source.teacher.licence.metadata
        if source.teacher.repository is not None:
            found["base_model"] = source.teacher.repository
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in found.items()), "---\n"])


def _listed(names: list[str], files: Mapping[str, str]) -> str:
    return ", ".join(f"`{name}` (SHA-256 {hashlib.sha256(files[name].encode()).hexdigest()})" for name in names)


def _in_quotes(name: str) -> str:
    """A name as it stands between the quotes of a text in Python."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def _made_from(source: ExportSource) -> Iterator[str]:
    teacher = source.teacher
    if teacher is None:
        yield "Teacher: none; the weights started at random values"
        yield "Licence: unknown; the model's makers have to name one"
    else:
        yield f"{'Checkpoint' if source.unchanged else 'Teacher'}: {teacher}" + (
            ", its weights as they are" if source.unchanged else ""
        )
        stated = teacher.licence
        yield f"Licence: {stated}, the teacher's" if stated.known and not source.unchanged else f"Licence: {stated}"
    for key, words in (("train", "Trained and calibrated on"), ("heldout", "Measured on")):
        if key in source.data:
            yield f"{words}: `{source.data[key]}`"


def _rows(summary: Mapping[str, Any]) -> Iterator[str]:
    perplexity, errors = summary.get("perplexity", {}), summary.get("perplexity_standard_error", {})
    if perplexity:
        cells = [
            "" if when not in perplexity else f"{perplexity[when]:.3f}{_error(errors.get(when))}"
            for when in ("teacher", "start", "end")
        ]
        yield f"| perplexity on held-out text | {' | '.join(cells)} |"
    ratio = summary.get("perplexity_ratio", {})
    if ratio:
        cells = [f"{ratio[when]:.3f}" if when in ratio else "" for when in ("start", "end")]
        yield f"| divided by the teacher's | 1 | {' | '.join(cells)} |"
    cache = summary.get("cache_bytes_per_token", {})
    if cache:
        cells = [f"{cache[who]:,.0f}" if who in cache else "" for who in ("teacher", "student", "student")]
        at = f" at a context of {summary['cache_context']:,}" if "cache_context" in summary else ""
        yield f"| cached bytes per token{at} | {' | '.join(cells)} |"
    once = summary.get("cache_bytes_once", {})
    if any(once.values()):
        cells = [f"{once[who]:,}" if who in once else "" for who in ("teacher", "student", "student")]
        yield f"| cached bytes once per sequence | {' | '.join(cells)} |"


def _error(value: float | None) -> str:
    return "" if value is None else f" ± {value:.3f}"


def _how(source: ExportSource) -> str:
    summary = source.summary
    facts = [
        f"{summary[key]:,} {words}"
        for key, words in (
            ("scored_tokens", f"tokens scored, at a context of {source.context:,}"),
            ("tokens", "tokens of training"),
            ("calibration_tokens", "tokens of calibration"),
            ("parameters", "parameters"),
        )
        if summary.get(key)
    ]
    return ("; ".join(facts) + ".  ± is the standard error.\n") if facts else ""


def _made_with(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    run = (
        f"Run `{summary['name']}/{summary['group']}/{summary['run']}`, seed {summary['seed']}, with " if summary else ""
    )
    versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    commit = f" (commit {summary['commit']} of caramba)" if summary.get("commit") else ""
    made = f"{run}{versions}{commit}.  " if run else ""
    exported = f"Exported by caramba {__version__}"
    return f"{made}{exported}.  Architecture: `{config['model_type']}`, weights in {config['torch_dtype']}.\n"
