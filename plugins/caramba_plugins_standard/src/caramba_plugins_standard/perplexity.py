"""Perplexity on held-out tokens: the likelihood of each under a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caramba_core.components import Storage
from caramba_core.datasets import Tokens
from caramba_core.errors import InputError, NumericalStop
from caramba_core.modes import Evaluation
from caramba_core.nn.frame import Frame
from caramba_core.nn.language_model import LanguageModel
from caramba_plugins_standard.measurement import Measurement

__all__ = ["hidden_states", "measure", "require_enough"]

_LOGIT_ROWS = 256
"""Tokens whose logits are held at once."""


def measure(
    model: LanguageModel,
    tokens: Tokens,
    settings: Evaluation,
    *,
    known: Measurement | None = None,
    progress: Callable[[int], None] = lambda tokens: None,
    stops: Callable[[], bool] = lambda: False,
) -> Measurement:
    """Score consecutive windows of ``settings.context`` tokens; each token but a window's first counts once.

    ``known`` has the first windows, which are not measured again.  ``stops`` is asked behind every batch: where it says
    so, the measurement that is returned lacks the last windows.

    With a rounded cache (``settings.cache``, or an attention's own) every key and value, a token's own too, is read
    back from it: the likelihoods are those of decoding token by token through it, in one pass a window.

    Raises :class:`InputError` where there are too few tokens, :class:`NumericalStop` where a likelihood is not finite.
    """
    needed = require_enough(tokens, settings)
    device = model.head_weight.device
    windows = tokens.read(0, needed).reshape(settings.windows, settings.context)
    rows = [] if known is None else [torch.from_numpy(known.nll)]
    with torch.inference_mode():
        for first in range(sum(map(len, rows)), settings.windows, settings.batch_size):
            batch = torch.from_numpy(windows[first : first + settings.batch_size]).to(device)
            rows.append(_nll(model, batch, settings.cache).cpu())
            progress(batch.numel())
            if stops():
                break
    nll = torch.cat(rows).numpy()
    if not np.isfinite(nll).all():
        raise NumericalStop(
            f"{int((~np.isfinite(nll)).sum())} of {nll.size} likelihoods on {tokens.origin} are not finite",
            hint="look for infinite or NaN weights, or a float16 overflow",
        )
    return Measurement(nll=nll)


def require_enough(tokens: Tokens, settings: Evaluation) -> int:
    """Tokens that the measurement reads; :class:`InputError` where there are fewer."""
    needed = settings.windows * settings.context
    if len(tokens.ids) < needed:
        raise InputError(
            f"{tokens.origin} has {len(tokens.ids):,} tokens, too few to measure on",
            expected=f"{needed:,} tokens ({settings.windows} windows of {settings.context})",
            hint="set eval.windows or eval.context lower, or give more held-out text",
        )
    return needed


def _nll(model: LanguageModel, tokens: Tensor, storage: Storage | None) -> Tensor:
    """Negative log-likelihood of each token but the first: ``[B, T] -> [B, T - 1]``."""
    hidden = hidden_states(model, tokens, storage)[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    parts = []
    for at in range(0, len(targets), _LOGIT_ROWS):
        logits = model.logits(hidden[at : at + _LOGIT_ROWS])
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        parts.append(F.cross_entropy(wide, targets[at : at + _LOGIT_ROWS], reduction="none"))
    return torch.cat(parts).view(tokens.shape[0], -1)


def hidden_states(model: LanguageModel, tokens: Tensor, storage: Storage | None) -> Tensor:
    """What the head reads: ``[B, T] -> [B, T, D]``, every key and value read back from a cache that is rounded, if any.

    With ``storage``, or an attention's own, states are those of decoding token by token, in one pass.
    """
    cache = model.new_cache(tokens.shape[0], storage=storage)
    if not any(layer.lossy for layer in cache.layers()):
        return model.hidden(tokens)
    cache.reserve(tokens.shape[1])
    with torch.compiler.set_stance("force_eager"):  # caches are found by name: each compiled block would compile anew
        return model.hidden(tokens, Frame.of(tokens, cache=cache))
