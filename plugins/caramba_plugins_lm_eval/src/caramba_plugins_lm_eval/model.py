"""What lm-eval asks of a model, answered by caramba's: likelihoods, rolling likelihoods, texts.

Tokens are made, cut and scored as lm-eval's own model of transformers does, so that figures are comparable.
Axes: B requests of a pass, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from caramba_plugins_eval.subject import Subject
from caramba_plugins_standard.decoding import Decoder, padded
from caramba_plugins_standard.generation import continuations
from caramba_plugins_standard.modes import Sampling
from caramba_plugins_standard.perplexity import hidden_states
from caramba_plugins_standard.sampling import Sampler
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from caramba_core.components import Attention
from caramba_core.errors import InputError

__all__ = ["CarambaLM"]

_LONGEST: Final = 2048
"""Tokens of a pass where nothing says what the model is made for, as in lm-eval."""

_NEW: Final = 256
"""Tokens of a text where its task does not say, as in lm-eval."""

_Pair = tuple[Any, list[int], list[int]]


class CarambaLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A subject's model for ``lm_eval.simple_evaluate(model=CarambaLM(subject), ...)``.

    ``context`` is the most tokens of a pass; ``batch_size`` requests share one.  The subject's ``computing`` is entered
    by the caller.
    """

    def __init__(self, subject: Subject, *, context: int | None = None, batch_size: int | None = None) -> None:
        super().__init__()
        self.subject = subject
        self.max_length = context or subject.longest or _LONGEST
        self.batch_size = batch_size or subject.evaluation.batch_size
        self._coder = subject.required_tokenizer("lm_eval")

    # ------------------------------------------------------------------------------------------------ tokens

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.subject.device

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        ends = [self._coder.end_of_text, *sorted(self._coder.stops)]
        return next((id_ for id_ in ends if id_ is not None), self.prefix_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that a text without a context is scored behind."""
        return self.subject.begin_of_text("lm_eval")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **_: Any
    ) -> list[int]:
        """Token ids; behind BOS where the tokenizer puts it, unless told otherwise, and the text has none."""
        ids = self._coder.encode(string, special_tokens=True)
        bos = self._coder.bos
        wanted = self._coder.adds_bos if add_special_tokens is None else add_special_tokens and self._coder.adds_bos
        if wanted and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        return ids if left_truncate_len is None else ids[-left_truncate_len:]

    # ------------------------------------------------------------------------------------------------ likelihoods

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The likelihood of each whole text, in nats: every token is scored once, as lm-eval rolls over it."""
        owners: list[int] = []
        windows: list[_Pair] = []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            rolled = get_rolling_token_windows(
                token_list=ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            for context, continuation in map(make_disjoint_window, rolled):
                owners.append(index)
                windows.append((None, context, continuation))
        found = [0.0] * len(requests)
        for owner, (likelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            found[owner] += likelihood
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[_Pair], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation behind its context, and whether it is the greedy one.

        Requests that read the same tokens share one row; rows are padded on the right, where no token sees them.
        """
        by_input: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise InputError(
                    f"lm_eval: a continuation has {len(continuation):,} tokens",
                    expected=f"1 to {self.max_length:,}, the most of a pass",
                )
            read = (context + continuation)[-(self.max_length + 1) :][:-1]
            by_input.setdefault(tuple(read), []).append((index, continuation))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        rows = sorted(by_input, key=len, reverse=True)
        with torch.inference_mode(), self.subject.reporter.bar("lm_eval", sum(map(len, rows))) as bar:
            for first in range(0, len(rows), self.batch_size):
                batch = rows[first : first + self.batch_size]
                longest = max(map(len, batch))
                tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in batch], device=self.device)
                hidden = hidden_states(self.subject.model, tokens, self.subject.storage)
                for row, states in zip(batch, hidden, strict=True):
                    for index, continuation in by_input[row]:
                        found[index] = self._scored(states[len(row) - len(continuation) : len(row)], continuation)
                bar.advance(sum(map(len, batch)))
        return found

    def _scored(self, states: torch.Tensor, continuation: list[int]) -> tuple[float, bool]:
        """The log-likelihood of a continuation behind states ``[T, D]``, and whether each token is the likeliest."""
        targets = torch.tensor(continuation, device=self.device)
        total, greedy = 0.0, True
        for part, wanted in zip(states.split(256), targets.split(256), strict=True):
            logits = self.subject.model.logits(part)
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            total += float(wide.gather(-1, wanted[:, None]).double().sum())
            greedy = greedy and bool((wide.argmax(-1) == wanted).all())
        return total, greedy

    # ------------------------------------------------------------------------------------------------ texts

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each prompt through the model's cache, up to a stop text, an end token or a length."""
        found = [""] * len(requests)
        asked = [(index, *request.args) for index, request in enumerate(requests)]
        for settings in {repr(kwargs): kwargs for _, _, kwargs in asked}.values():
            kwargs = normalize_gen_kwargs(settings, _NEW)
            stops = handle_stop_sequences(kwargs["until"], eos=self._coder.decode([self.eot_token_id]))
            count = int(kwargs["max_gen_toks"])
            room = self.max_length - count
            if room < 1:
                raise InputError(
                    f"lm_eval: a task asks for {count:,} new tokens, and a pass has {self.max_length:,}",
                    hint="give the metric a longer context",
                )
            prompts = {
                index: self.tok_encode(prompt, left_truncate_len=room)
                for index, prompt, own in asked
                if own == settings
            }
            for batch in self._batches(prompts):
                texts = self._continued([prompts[index] for index in batch], count, stops, self._sampling(kwargs))
                for index, text in zip(batch, texts, strict=True):
                    found[index] = postprocess_generated_text(text, stops, None)
        return found

    def _batches(self, prompts: dict[int, list[int]]) -> Iterator[list[int]]:
        """Prompts that go together: of any lengths where every attention takes them, else of one."""
        nodes = self.subject.model.graph.attentions().values()
        mixed = all(isinstance(node.config, Attention) and node.config.takes_starts for node in nodes)
        groups: dict[int, list[int]] = {}
        for index in sorted(prompts, key=lambda index: -len(prompts[index])):
            groups.setdefault(0 if mixed else len(prompts[index]), []).append(index)
        for group in groups.values():
            yield from (group[first : first + self.batch_size] for first in range(0, len(group), self.batch_size))

    def _sampling(self, kwargs: dict[str, Any]) -> Sampling:
        """lm-eval's settings of a draw; greedy unless it asks for one."""
        if not kwargs.get("do_sample"):
            return Sampling()
        return Sampling(temperature=kwargs.get("temperature"), top_k=kwargs.get("top_k"), top_p=kwargs.get("top_p"))

    def _continued(self, prompts: list[list[int]], count: int, stops: Sequence[str], sampling: Sampling) -> list[str]:
        """The texts behind prompts; they end together, once each has come to a stop text or an end token."""
        tokens, starts = padded(prompts, self.device)
        subject, ends = self.subject, self._coder.stops | {self.eot_token_id}
        decoder = Decoder(subject.model, batch=len(prompts), capacity=tokens.shape[1] + count, storage=subject.storage)
        seeds = range(subject.seed, subject.seed + len(prompts))
        sampler = Sampler(sampling, seeds, tokens, subject.model.graph.vocab_size, starts)
        rows: list[list[int]] = [[] for _ in prompts]
        open_ = set(range(len(prompts)))
        for new in continuations(decoder, decoder.prefill(tokens, starts=starts), count, sampler):
            for index, id_ in enumerate(new.tolist()):
                if index not in open_:
                    continue
                if id_ in ends:
                    open_.discard(index)
                    continue
                rows[index].append(id_)
                text = self._coder.decode(rows[index])
                if any(stop and stop in text for stop in stops):
                    open_.discard(index)
            if not open_:
                break
        return [self._coder.decode(row) for row in rows]
