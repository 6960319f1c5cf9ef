"""A model with its tokenizer: the result of a run, or a pretrained checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, overload

import attrs
from caramba_plugins_standard.opening import OpenedRun, cache_named, is_run, load_checkpoint, open_checkpoint, open_run

from caramba_core.errors import InputError, InvalidValue

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    import torch
    from caramba_plugins_standard.loading import Checkpoint
    from caramba_plugins_standard.measurement import Measurement
    from torch import Tensor

    from caramba_core.datasets import Tokens
    from caramba_core.modes import Evaluation
    from caramba_core.nn.language_model import LanguageModel
    from caramba_core.teachers import Tokenizer

    TokenIds: TypeAlias = Sequence[int] | np.ndarray[Any, np.dtype[np.integer[Any]]] | Tensor

__all__ = ["Model", "open_model"]

_DTYPES: Final = ("float32", "bfloat16", "float16", "float64")


@attrs.define(kw_only=True, slots=False, repr=False, eq=False)
class Model:
    """A language model with its tokenizer; :func:`caramba.open` makes it.

    Attributes:
        path: the run's folder, or the checkpoint.
        model: the :class:`~caramba_core.nn.language_model.LanguageModel`, an ordinary ``torch.nn.Module`` in evaluation
            mode: int64 token ids ``[B, T]`` in, logits ``[B, T, V]`` out.
        manifest: the run's resolved manifest as plain data; of a checkpoint, its model alone.
        summary: the run's ``summary.json``; ``None`` for a checkpoint, and for a run that has not finished.
    """

    path: Path
    model: LanguageModel
    manifest: dict[str, Any]
    summary: dict[str, Any] | None
    _dtype: str
    _checkpoint: Callable[[], Checkpoint | None]
    _run: OpenedRun | None = None

    def __attrs_post_init__(self) -> None:
        self.model.eval().requires_grad_(True)

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return f"<caramba.Model {self.path}: {parameters:,} parameters on {self.device}>"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.head_weight.device

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the run's teacher, or of the checkpoint; ``None`` where there is none.

        Raises :class:`InputError` where the run's teacher is no longer where the manifest says.
        """
        checkpoint = self._checkpoint()
        return None if checkpoint is None else checkpoint.tokenizer()

    @cached_property
    def teacher(self) -> Model | None:
        """The run's teacher on the same device, loaded when first asked for; ``None`` where there is none."""
        checkpoint = None if self._run is None else self._run.teacher()
        if checkpoint is None:
            return None
        assert self._run is not None and self._run.group.teacher is not None
        model = load_checkpoint(checkpoint, self.device.type, self._run.group.teacher.dtype)
        return _of_checkpoint(checkpoint, model, self._dtype)

    # ------------------------------------------------------------------------------------------------ using it

    @overload
    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        *,
        ignore_eos: bool = False,
        cache: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompt: TokenIds,
        max_new_tokens: int = 128,
        *,
        ignore_eos: bool = False,
        cache: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
    ) -> list[int]: ...
    def generate(
        self,
        prompt: str | TokenIds,
        max_new_tokens: int = 128,
        *,
        ignore_eos: bool = False,
        cache: str | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
    ) -> str | list[int]:
        """Continue a prompt through the model's own cache, to the token that ends a text or a turn.

        Greedily, unless a setting of sampling is given; they do what they do in transformers' ``generate``.

        Args:
            prompt: a text, or its token ids ``[T]``.  A text begins with BOS where the checkpoint's tokenizer puts it;
                what spells a special token in it is one.
            max_new_tokens: most tokens to add.
            ignore_eos: go on behind the tokens that end a text.
            cache: how keys and values are stored: ``full``, ``int8`` or ``int4``; as the run measures if not given.
            temperature: what logits are divided by before a draw; 0 is greedy.
            top_k: draw from so many of the likeliest tokens.
            top_p: draw from the likeliest tokens of this probability together.
            min_p: draw from tokens of this share of the likeliest one's probability.
            repetition_penalty: what logits of tokens of the text so far are divided by.
            seed: seed of the draws.

        Returns:
            Prompt and continuation: a text for a text, token ids for token ids.
        """
        from caramba_plugins_standard.generation import generate
        from caramba_plugins_standard.modes import Sampling

        if max_new_tokens < 0:
            raise InputError(f"max_new_tokens is {max_new_tokens}", expected="0 or more")
        try:
            sampling = Sampling(
                temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
            )
        except InvalidValue as error:
            raise InputError(str(error), expected=error.expected, hint=error.hint) from None
        storage = self._settings(cache=cache).cache
        tokens = self._tensor(prompt, axes=(1,))[None]
        stops = frozenset() if ignore_eos or self.tokenizer is None else self.tokenizer.stops
        settings: dict[str, Any] = {"storage": storage, "stops": stops, "sampling": sampling, "seed": seed}
        with self._computing():
            out: list[int] = generate(self.model, tokens, max_new_tokens, **settings)[0].tolist()
        return self._require_tokenizer().decode(out) if isinstance(prompt, str) else out

    def logits(self, text: str | TokenIds) -> Tensor:
        """The logits of the next token behind each token, in float32.

        A text or ids ``[T]`` give ``[T, V]``, ids ``[B, T]`` give ``[B, T, V]``; on the model's device.
        """
        tokens = self._tensor(text, axes=(1, 2))
        with self._computing():
            logits: Tensor = self.model(tokens if tokens.ndim == 2 else tokens[None]).float()
        return logits if tokens.ndim == 2 else logits[0]

    def perplexity(
        self,
        text: str | TokenIds | None = None,
        *,
        context: int | None = None,
        windows: int | None = None,
        batch_size: int | None = None,
        cache: str | None = None,
    ) -> float:
        """The perplexity of a text, over consecutive windows of which each token but the first is scored once.

        Args:
            text: a text, or token ids ``[T]``; the run's own held-out tokens if not given, which gives the perplexity
                of ``summary``.
            context: tokens per window; as the run measures if not given, or the whole text where it is shorter.
            windows: how many windows, from the start of the text; all that it has if not given.
            batch_size: windows per pass.
            cache: how keys and values are stored while measuring: ``full``, ``int8`` or ``int4``.

        Raises:
            InputError: where there are too few tokens, or a text and no tokenizer.
            NumericalStop: where a likelihood is NaN or infinite.
        """
        return self.measure(text, context=context, windows=windows, batch_size=batch_size, cache=cache).perplexity

    def measure(
        self,
        text: str | TokenIds | None = None,
        *,
        context: int | None = None,
        windows: int | None = None,
        batch_size: int | None = None,
        cache: str | None = None,
    ) -> Measurement:
        """The same as :meth:`perplexity`, with ``standard_error``, and ``nll`` of each scored token in nats."""
        from caramba_plugins_standard.perplexity import measure

        if text is not None:
            tokens = self._given_tokens(text)
            context = max(2, min(self._settings().context, len(tokens.ids))) if context is None else context
            windows = max(1, len(tokens.ids) // max(1, context)) if windows is None else windows
        elif self._run is not None:
            tokens = self._run.heldout_tokens(self.model.graph, self.tokenizer)
        else:
            raise InputError("a checkpoint has no held-out tokens of its own", expected="a text or token ids")
        settings = self._settings(context=context, windows=windows, batch_size=batch_size, cache=cache)
        with self._computing():
            return measure(self.model, tokens, settings)

    # ------------------------------------------------------------------------------------------------ helpers

    def _settings(self, **changes: Any) -> Evaluation:
        """How this model is measured, with the changes that are not ``None``."""
        from caramba_core.components import evolve
        from caramba_core.modes import Evaluation

        own = Evaluation() if self._run is None else self._run.evaluation
        chosen = {name: value for name, value in changes.items() if value is not None}
        if "cache" in chosen:
            chosen["cache"] = cache_named(chosen["cache"])
        try:
            return evolve(own, **chosen)
        except InvalidValue as error:
            raise InputError(str(error), expected=error.expected, hint=error.hint) from None

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """No gradients, in the run's type."""
        import torch

        from caramba_core.run.device import autocast

        with torch.no_grad(), autocast(self.device, self._dtype):
            yield

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InputError(f"{self.path} has no tokenizer to read a text with", hint="give token ids instead")
        return self.tokenizer

    def _encode(self, text: str) -> list[int]:
        """BOS where the checkpoint's tokenizer puts it, and the text's tokens; special tokens are recognized."""
        from caramba_core.teachers import begin_of_text

        tokenizer = self._require_tokenizer()
        return [*begin_of_text(tokenizer, None, "the text"), *tokenizer.encode(text, special_tokens=True)]

    def _given_tokens(self, text: str | TokenIds) -> Tokens:
        from caramba_core.datasets import Tokens

        return Tokens(ids=self._tensor(text, axes=(1,)).cpu().numpy(), tokenizer=None, origin="the given text")

    def _tensor(self, text: str | TokenIds, *, axes: tuple[int, ...]) -> Tensor:
        """Token ids as int64 on the model's device, known to be in its vocabulary."""
        import torch

        ids = torch.as_tensor(self._encode(text) if isinstance(text, str) else text)
        if ids.numel() == 0:
            raise InputError("there are no tokens", expected="at least one")
        if ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim not in axes:
            raise InputError(
                f"a tensor of {ids.dtype} with shape {list(ids.shape)} holds no token ids",
                expected="integers " + " or ".join("[T]" if count == 1 else "[B, T]" for count in axes),
            )
        ids = ids.to(device=self.device, dtype=torch.int64)
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= self.model.graph.vocab_size:
            raise InputError(
                f"token id {least if least < 0 else most} is outside the model's vocabulary",
                expected=f"ids from 0 to {self.model.graph.vocab_size - 1}",
            )
        return ids


def open_model(path: str | PathLike[str], *, device: str, dtype: str | None, step: int | None) -> Model:
    """The model of a run or checkpoint; see :func:`caramba.open`."""
    if dtype is not None and dtype not in _DTYPES:
        raise InputError(f"there is no type {dtype!r}", expected=", ".join(_DTYPES))
    folder = Path(path)
    if is_run(folder):
        opened = open_run(folder, step)
        return Model(
            path=folder,
            model=opened.model(device),
            manifest=opened.loaded.document,
            summary=opened.summary,
            dtype=dtype or opened.dtype,
            checkpoint=opened.teacher,
            run=opened,
        )
    checkpoint = open_checkpoint(str(path))
    held = dtype or "float32"
    return _of_checkpoint(checkpoint, load_checkpoint(checkpoint, device, held), held)


def _of_checkpoint(checkpoint: Checkpoint, model: LanguageModel, dtype: str) -> Model:
    return Model(
        path=checkpoint.path,
        model=model,
        manifest={"model": dict(checkpoint.model())},
        summary=None,
        dtype=dtype,
        checkpoint=lambda: checkpoint,
    )
