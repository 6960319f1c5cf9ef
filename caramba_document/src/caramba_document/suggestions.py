"""The nearest known name to one that is not known, and lists in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final

__all__ = ["article", "listing", "nearest", "suggestion", "unknown"]

_FAMILIAR: Final = {
    "d_model": ("hidden_size", "n_embd", "dim"),
    "d_ff": ("intermediate_size",),
    "n_heads": ("num_attention_heads", "num_heads"),
    "n_kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "repeat": ("num_hidden_layers",),
    "n_layers": ("num_hidden_layers",),
    "eps": ("rms_norm_eps", "layer_norm_eps", "epsilon"),
    "theta": ("rope_theta",),
    "scaling": ("rope_scaling",),
    "rope": ("rope_scaling",),
    "window": ("sliding_window",),
    "tied_embeddings": ("tie_word_embeddings",),
    "lr": ("learning_rate",),
    "clip": ("max_grad_norm", "grad_clip"),
    "accumulate": ("gradient_accumulation_steps",),
    "steps": ("max_steps",),
    "context": ("seq_len", "block_size"),
    "source": ("model_name_or_path",),
}
"""What other libraries call things; only ever a suggestion."""


def nearest(name: str, known: Iterable[str], *, preferred: Collection[str] = ()) -> tuple[str, ...]:
    """Known names that ``name`` may stand for, likeliest first; empty where none is near.

    Near is an edit distance (insert, delete, replace, swap of neighbours) of one for short names, two from five
    letters, three from ten; capitals, dashes and underscores count little.  Among equally near ones ``preferred`` come
    first, then the order of ``known``.
    """
    candidates = list(dict.fromkeys(known))
    familiar = [other for other in candidates if name.casefold() in _FAMILIAR.get(other, ())]
    bound = 1 if len(name) < 5 else 2 if len(name) < 10 else 3
    ranked: list[tuple[int, bool, int, str]] = []
    for order, other in enumerate(candidates):
        # The looser comparison only ever brings names nearer: `nHeads` is n_heads, `D-Model` is d_model.
        distance = min(_distance(name, other, bound), 1 + _distance(_plain(name), _plain(other), bound - 1))
        if distance <= min(bound, max(len(name), len(other)) - 1):
            ranked.append((distance, other not in preferred, order, other))
    return tuple(dict.fromkeys([*familiar, *(other for _, _, _, other in sorted(ranked))]))


def suggestion(names: Sequence[str]) -> str:
    """``, did you mean 'a' or 'b'?``; empty without names."""
    if not names:
        return ""
    return f", did you mean {' or '.join(repr(name) for name in names[:4])}?"


def unknown(message: str, name: str, known: Collection[str], expected: str = "one of {}") -> tuple[str, str | None]:
    """What to say of a name that is not known: the message with the nearest ones, else what would have been right."""
    near = nearest(name, known)
    return f"{message}{suggestion(near)}", None if near else expected.format(listing(known))


def listing(names: Iterable[str], *, most: int = 16) -> str:
    """``a, b, c``, cut where it would no longer be read."""
    shown = list(names)
    if not shown:
        return "nothing"
    rest = len(shown) - most
    return ", ".join(shown) if rest <= 0 else f"{', '.join(shown[:most])} and {rest} more"


def article(noun: str) -> str:
    """``an attention``, ``a layer``."""
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")


def _distance(a: str, b: str, bound: int) -> int:
    """Optimal string alignment distance of two names; anything above ``bound`` where it is larger than that."""
    if bound < 0 or abs(len(a) - len(b)) > bound:
        return bound + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, before, row = before, row, [i]
        for j, y in enumerate(b, start=1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, above[j - 2] + 1)
            row.append(best)
    return row[-1]
