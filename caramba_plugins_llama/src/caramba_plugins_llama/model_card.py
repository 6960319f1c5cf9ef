"""The model card of an exported model: how to load it, and what its run measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

__all__ = ["model_card"]


_TOKENIZER: Final = """\
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}")
"""


def model_card(name: str, usage: str, summary: Mapping[str, Any], config: Mapping[str, Any], *, tokenizer: bool) -> str:
    """Markdown; numbers come from the run's ``summary.json`` alone.  ``tokenizer``: whether the folder holds one."""
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [caramba]\n---\n",
        f"# {name}\n",
        f"```python\n{(usage + (_TOKENIZER if tokenizer else '')).format(folder=name).rstrip()}\n```\n",
    ]
    if not tokenizer:
        parts.append("The checkpoint that this model started from came without a tokenizer, and so does this folder.\n")
    rows = list(_rows(summary))
    if rows:
        parts.append("## Measured\n")
        parts.append(
            "\n".join(["| | teacher | start of the run | end of the run |", "|---|---|---|---|", *rows]) + "\n"
        )
        parts.append(_how(summary))
    parts.append("## Made with\n")
    versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    made = f"Run `{summary['name']}/{summary['group']}/{summary['run']}`, seed {summary['seed']}. " if summary else ""
    parts.append(
        f"{made}{versions or 'caramba'}.  Architecture: `{config['model_type']}`, weights in {config['torch_dtype']}.\n"
    )
    return "\n".join(parts)


def _rows(summary: Mapping[str, Any]) -> list[str]:
    rows = []
    perplexity, errors = summary.get("perplexity", {}), summary.get("perplexity_standard_error", {})
    if perplexity:
        cells = [
            "" if when not in perplexity else f"{perplexity[when]:.3f}{_error(errors[when])}"
            for when in ("teacher", "start", "end")
        ]
        rows.append(f"| perplexity on held-out text | {' | '.join(cells)} |")
    ratio = summary.get("perplexity_ratio", {})
    if ratio:
        cells = [f"{ratio[when]:.3f}" if when in ratio else "" for when in ("start", "end")]
        rows.append(f"| divided by the teacher's | 1 | {' | '.join(cells)} |")
    cache = summary.get("cache_bytes_per_token", {})
    if cache:
        cells = [f"{cache[who]:,.0f}" if who in cache else "" for who in ("teacher", "student", "student")]
        rows.append(f"| cached bytes a token | {' | '.join(cells)} |")
    return rows


def _error(value: float | None) -> str:
    return "" if value is None else f" ± {value:.3f}"


def _how(summary: Mapping[str, Any]) -> str:
    facts = [
        f"{summary[key]:,} {words}"
        for key, words in (
            ("scored_tokens", "tokens scored"),
            ("tokens", "tokens of training"),
            ("calibration_tokens", "tokens of calibration"),
            ("parameters", "parameters"),
        )
        if summary.get(key)
    ]
    return ("; ".join(facts) + ".  ± is the standard error.\n") if facts else ""
