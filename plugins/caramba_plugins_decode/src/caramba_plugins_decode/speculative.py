"""Speculative decoding: a small model drafts tokens, the large one checks them in one pass.

What comes out is distributed as the large model's own text is (Leviathan et al. 2023, arXiv 2211.17192): a token that
the draft drew from q is accepted with probability min(1, p / q), and replaced by a draw from max(0, p - q) where it is
not.  Greedy decoding is the same with distributions of one token.

Axes: V vocabulary, k drafted tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from caramba_plugins_standard.modes import Sampling
from caramba_plugins_standard.sampling import Sampler, draw, process
from torch import Tensor
from torch.nn import functional as F

from caramba_core.errors import InputError
from caramba_plugins_decode.session import CachedText, not_taken_back
from caramba_plugins_decode.source import TextModel

__all__ = ["SpeculativeSession", "require_pair"]

_FIRST: Final = 4
_MOST: Final = 16


def require_pair(model: TextModel, draft: TextModel, length: float) -> None:
    """Raise :class:`InputError` where a model cannot draft for another, in texts of up to ``length`` tokens."""
    if model.tokenizer.identity != draft.tokenizer.identity or model.graph.vocab_size != draft.graph.vocab_size:
        raise InputError(
            f"{draft.name} cannot draft for {model.name}: they have other tokens "
            f"({draft.graph.vocab_size:,} of tokenizer {draft.tokenizer.identity[:12]}, and "
            f"{model.graph.vocab_size:,} of {model.tokenizer.identity[:12]})",
            expected="two models with the same tokenizer, such as a teacher and its student",
        )
    for one in (model, draft):
        site = not_taken_back(one.graph, length)
        if site is not None:
            raise InputError(
                f"{one.name} takes no part in speculative decoding: the cache of {site} cannot take tokens back",
                hint="leave --draft out",
            )


class SpeculativeSession:
    """Answers of ``model`` to texts that grow or begin anew, from drafts of ``draft``.

    ``draft_tokens`` are drafted a round; without a number they become more while all are accepted, and fewer where one
    is not.  ``drafted`` and ``accepted`` count tokens.
    """

    def __init__(self, model: TextModel, draft: TextModel, draft_tokens: int | None = None) -> None:
        self.target = CachedText(model.model, model.storage)
        self.draft = CachedText(draft.model, draft.storage)
        self.drafted = self.accepted = 0
        self._fixed = draft_tokens
        self._next = draft_tokens or _FIRST

    @property
    def bytes(self) -> int:
        """Bytes of both caches as allocated."""
        return self.target.bytes + self.draft.bytes

    @property
    def longest(self) -> int:
        """Most tokens that are drafted a round."""
        return self._fixed or _MOST

    def tokens(self, prompt: Sequence[int], count: int, sampling: Sampling, seed: int) -> Iterator[int]:
        """At most ``count`` tokens that follow a prompt; a round is computed when its first token is asked for."""
        chooser = _Chooser(sampling, [seed], self.target.ids(prompt), self.target.model.graph.vocab_size)
        first = chooser.draw(chooser.probabilities(self.target.prefill(prompt, count + self.longest)))
        ids = [*prompt, int(first)]
        chooser.note(first[None])
        yield ids[-1]
        while (left := count - (len(ids) - len(prompt))) > 0:
            new = self._round(ids, min(self._next, left - 1), left, chooser)
            yield from new

    def _round(self, ids: list[int], k: int, left: int, chooser: _Chooser) -> list[int]:
        """Draft ``k`` tokens, check them, and append what is settled to ``ids``; the last one is in no cache yet."""
        drafts, q = self._drafted(ids, k, left, chooser) if k else (ids[:0], None)
        p = chooser.probabilities(self.target.score([ids[-1], *drafts], self.longest + 1), drafts)
        taken = k if q is None else chooser.accepted(p, q, drafts)
        rest = p[taken : taken + 1]
        if q is not None and taken < k:
            above = (rest - q[taken : taken + 1]).clamp(min=0)
            rest = torch.where(above.sum() > 0, above, rest)  # nothing is above where they differ by rounding alone
        last = chooser.draw(rest)
        new = [*drafts[:taken], int(last)]
        chooser.note(self.target.ids(new))
        self.drafted += k
        self.accepted += taken
        if self._fixed is None and k:
            self._next = min(self._next + 2, _MOST) if taken == k else max(1, self._next - 1)
        ids += new
        self.target.keep(len(ids) - 1)
        return new

    def _drafted(self, ids: list[int], k: int, left: int, chooser: _Chooser) -> tuple[list[int], Tensor]:
        """``k`` tokens that the draft model draws behind ``ids``, and what it drew each from: ``[k, V]``."""
        logits = self.draft.prefill(ids, left + self.longest)
        rows, drawn = [], list[Tensor]()
        for at in range(k):
            rows.append(chooser.probabilities(logits, drawn=drawn))
            drawn.append(chooser.draw(rows[-1]))
            if at + 1 < k:
                logits = self.draft.decoder.step(drawn[-1])
        drafts: list[int] = torch.cat(drawn).tolist()
        self.draft.note([*ids, *drafts])
        return drafts, torch.cat(rows)


class _Chooser(Sampler):
    """What both models' logits become, and the draws of one text."""

    def draw(self, probabilities: Tensor) -> Tensor:
        """A token, int64 ``[1]``, of probabilities ``[1, V]``."""
        if self.sampling.greedy:
            return probabilities.argmax(dim=-1)
        return draw(probabilities, self.draws.next())

    def probabilities(self, logits: Tensor, between: Sequence[int] = (), drawn: Sequence[Tensor] = ()) -> Tensor:
        """What tokens are drawn from, given logits ``[N, V]``.

        Row ``n`` has seen the text, the first ``n`` tokens ``between``, and all that were ``drawn`` since.
        """
        seen = self.seen
        if seen is not None and drawn:
            seen = seen.scatter(1, torch.cat(list(drawn))[None], True)
        if seen is not None and between:
            hot = F.one_hot(torch.tensor(between, device=seen.device), logits.shape[-1]).cumsum(dim=0) > 0
            seen = torch.cat([seen, seen | hot])
        processed = process(logits, self.sampling, seen)
        if self.sampling.greedy:
            return F.one_hot(processed.argmax(dim=-1), logits.shape[-1]).to(processed.dtype)
        return processed.softmax(dim=-1)

    def accepted(self, p: Tensor, q: Tensor, drafts: Sequence[int]) -> int:
        """How many drafts are accepted, one after the other: p ``[k + 1, V]``, q ``[k, V]``."""
        chosen = torch.tensor(drafts, device=p.device)[:, None]
        likely, drawn_from = p[: len(drafts)].gather(1, chosen)[:, 0], q.gather(1, chosen)[:, 0]
        uniforms = torch.cat([self.draws.next() for _ in drafts])
        refused: list[bool] = (uniforms * drawn_from >= likely).tolist()
        return refused.index(True) if any(refused) else len(drafts)
