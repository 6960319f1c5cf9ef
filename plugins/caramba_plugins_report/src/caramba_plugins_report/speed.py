"""Decoding speed and cached bytes against context, measured: the teacher of a group beside its student."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from caramba_plugins_standard.opening import OpenedRun, load_checkpoint

from caramba_core.errors import InputError

if TYPE_CHECKING:
    import torch

    from caramba_core.nn.language_model import LanguageModel

__all__ = ["DecodingSpeed", "contexts_of", "decoding_speeds"]

_STEPS: Final = 16
_TURNS: Final = 5
_WARM_UP: Final = 2


@attrs.frozen(kw_only=True)
class DecodingSpeed:
    """How a model decodes one sequence behind ``context`` tokens.

    ``tokens_per_second`` is the median of five turns of 16 steps, in which models take turns; ``cache_bytes`` are those
    of a cache with room for the context.  ``model`` is ``teacher`` or a run's name.
    """

    model: str
    context: int
    tokens_per_second: float
    cache_bytes: int
    device: str
    dtype: str

    def as_data(self) -> dict[str, Any]:
        """Plain data."""
        return attrs.asdict(self)


def contexts_of(text: str) -> list[int]:
    """Contexts as the command line names them: ``256,1024``; :class:`InputError` for anything else."""
    parts = [part.strip().replace("_", "") for part in text.split(",")]
    if not all(part.isdecimal() and part.isascii() and int(part) > 0 for part in parts):
        raise InputError(f"--decoding is {text!r}", expected="numbers of tokens with commas between: 256,1024,4096")
    return sorted({int(part) for part in parts})


def decoding_speeds(opened: OpenedRun, contexts: Sequence[int], device: str) -> list[DecodingSpeed]:
    """Measure a run's model, and its teacher's beside it.

    The prompt is random tokens; caches are stored as the run measures.  Raises :class:`InputError` where the teacher is
    no longer there.
    """
    import torch
    from caramba_plugins_standard.decoding import Decoder

    from caramba_core.run.device import autocast

    models = _models(opened, device)
    storage = opened.evaluation.cache
    found: list[DecodingSpeed] = []
    for context in contexts:
        decoders, rates = {}, dict[str, list[float]]()
        for name, model in models.items():
            where = model.head_weight.device
            tokens = torch.randint(model.graph.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
            decoder = Decoder(model, batch=1, capacity=context + _WARM_UP + _TURNS * _STEPS, storage=storage)
            with autocast(where, opened.dtype):
                decoder.prefill(tokens.to(where))
                _steps(decoder, tokens[:, 0].to(where), _WARM_UP)
            decoders[name] = decoder, tokens[:, 0].to(where)
        for _ in range(_TURNS):
            for name, (decoder, token) in decoders.items():
                with autocast(token.device, opened.dtype):
                    rates.setdefault(name, []).append(_STEPS / _steps(decoder, token, _STEPS))
        found += (
            DecodingSpeed(
                model=name,
                context=context,
                tokens_per_second=statistics.median(rates[name]),
                cache_bytes=model.new_cache(1, capacity=context, storage=storage).bytes,
                device=model.head_weight.device.type,
                dtype=opened.dtype,
            )
            for name, model in models.items()
        )
    return found


def _models(opened: OpenedRun, device: str) -> dict[str, LanguageModel]:
    """The teacher, if there is one, and the run's model, by their names."""
    checkpoint, models = opened.teacher(), {}
    if checkpoint is not None:
        assert opened.group.teacher is not None
        models["teacher"] = load_checkpoint(checkpoint, device, opened.group.teacher.dtype)
    models[Path(opened.path).resolve().name] = opened.model(device)
    return {name: model.eval() for name, model in models.items()}


def _steps(decoder: Any, token: torch.Tensor, count: int) -> float:
    """Seconds that so many steps take."""
    import torch

    began = time.perf_counter()
    for _ in range(count):
        decoder.step(token)
    if not token.is_cpu:
        torch.accelerator.synchronize(token.device)
    return time.perf_counter() - began
