"""How much is computed: windows, calibration and training tokens that a text has and a machine does in minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from caramba_core.datasets import Tokens
from caramba_core.errors import InputError
from caramba_core.graph import Graph
from caramba_core.manifest.values import settings_of
from caramba_core.plugins.registry import registry
from caramba_core.teachers import Tokenizer

__all__ = ["Device", "Sizes", "Texts", "context_for", "device_here", "open_texts", "sizes_for"]

_PARTS: Final = ((0.0, 0.9), (0.9, 1.0))
_SHORTEST: Final = 16
"""Tokens of the shortest window that is still worth measuring."""


@attrs.frozen(kw_only=True)
class Device:
    """What runs compute on: torch's name, what people call it, and bytes of memory."""

    kind: str
    called: str
    memory: int


@attrs.frozen(kw_only=True)
class Texts:
    """What is learnt from and measured on: a manifest's ``data:`` without paths, and tokens of each.

    ``found`` is false where the user has named no text yet.
    """

    train: dict[str, Any]
    heldout: dict[str, Any]
    tokens: tuple[int, int] = (1 << 40, 1 << 40)
    found: bool = True


@attrs.frozen(kw_only=True)
class Sizes:
    """Numbers of the runs; each of ``steps`` takes ``accumulate`` times ``batch_size`` windows of ``train_context``."""

    context: int
    windows: int
    calibration: int
    train_context: int
    batch_size: int
    accumulate: int
    steps: int
    lr: float
    trains: tuple[str, ...]
    dtype: str
    teacher_dtype: str

    @property
    def trained(self) -> int:
        """Tokens that the model trains on."""
        return self.steps * self.accumulate * self.batch_size * self.train_context

    def smaller(self) -> Iterator[Sizes]:
        """Itself, then what takes less and less memory: smaller batches, a teacher in bfloat16, less that trains."""
        yield self
        size = self
        while size.batch_size > 1:
            size = attrs.evolve(size, batch_size=size.batch_size // 2, accumulate=size.accumulate * 2)
            yield size
        yield (size := attrs.evolve(size, teacher_dtype="bfloat16"))
        yield attrs.evolve(size, trains=("attention",))


def device_here() -> Device:
    """What ``device: auto`` takes on this machine."""
    import os

    import torch

    from caramba_core.run.device import memory_of, pick_device

    device = pick_device("auto")
    called = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores"
    return Device(kind=device.type, called=called, memory=memory_of(device))


def open_texts(text: Path | None, heldout: Path | None, tokenizer: Tokenizer | None, graph: Graph) -> Texts:
    """The datasets of files, opened once: a file that cannot be used is said now (:class:`InputError`)."""
    if text is None:
        if heldout is not None:
            raise InputError("--heldout is what is measured on", hint="--text names what is learnt from")
        kind, path = ("tokens", "your_tokens.npy") if tokenizer is None else ("text", "your_text.txt")
        train, held = ({"type": kind, "path": path, "part": list(part)} for part in _PARTS)
        return Texts(train=train, heldout=held, found=False)
    if heldout is None:  # a text is divided between lines: only its parts say how many tokens they have
        first, second = (_dataset(text, tokenizer, graph, part=part) for part in _PARTS)
    else:
        first, second = (_dataset(path, tokenizer, graph) for path in (text, heldout))
    return Texts(train=first.written, heldout=second.written, tokens=(first.tokens, second.tokens))


@attrs.frozen(kw_only=True)
class _Opened:
    written: dict[str, Any]
    tokens: int


def _dataset(path: Path, tokenizer: Tokenizer | None, graph: Graph, part: tuple[float, float] | None = None) -> _Opened:
    if not path.is_file():
        raise InputError(f"{path} {'is not a file' if path.exists() else 'does not exist'}", expected="a text, or .npy")
    plugins = registry()
    entry = plugins.for_suffix("dataset", path.name) or plugins.find(("dataset",), "text")
    config = plugins.load(entry)
    if part is not None and "part" not in settings_of(config):
        raise InputError(f"{path} is of a dataset that cannot be divided", hint="--heldout names another file")
    divided: dict[str, Any] = {} if part is None else {"part": part}
    tokens: Tokens = config(path=str(path), **divided).open(Path(), tokenizer).checked(graph.vocab_size)
    if tokenizer is not None and tokens.tokenizer not in (None, tokenizer.identity):
        raise InputError(
            f"{path} was made with another tokenizer than the checkpoint's",
            expected=f"ids of the tokenizer {tokenizer.identity[:12]}",
            hint="caramba data prepare makes an array with --tokenizer CHECKPOINT",
        )
    written = {"type": entry.name, "path": str(path), **({} if part is None else {"part": list(part)})}
    return _Opened(written=written, tokens=len(tokens.ids))


def context_for(texts: Texts, device: Device) -> int:
    """Tokens of a window: as many as a text has room for, up to what is measured elsewhere too.

    Raises :class:`InputError` for a text that is too short to learn from or to measure on.
    """
    shorter = min(texts.tokens)
    context = 1024 if device.kind == "cpu" else 2048
    while context > _SHORTEST and 2 * context >= shorter:
        context //= 2
    if context >= shorter:
        learnt, measured = texts.tokens
        raise InputError(
            f"the text is too short: {learnt:,} tokens to learn from, {measured:,} to measure on",
            expected=f"more than {_SHORTEST} of each, better 10,000 and more",
        )
    return context


def sizes_for(texts: Texts, device: Device, context: int, *, bounded: bool) -> Sizes:
    """Sizes that a text has room for: minutes on a CPU, the beginning of the measured recipe on an accelerator.

    ``bounded``: the model loses in long windows alone, so that it learns in whole ones.
    """
    learnt, measured = texts.tokens
    small = device.kind == "cpu"
    trained = context if bounded or not small else max(context // 2, min(context, _SHORTEST))
    return Sizes(
        context=context,
        windows=min(5 if small else 32, (measured - 1) // context),
        calibration=min(8192 if small else 65536, (learnt - 1) // context * context),
        train_context=trained,
        batch_size=1 if small else 8,
        accumulate=1,
        steps=12_288 // max(trained, 512) if small else 500,
        lr=5e-4 if small else 2e-4,
        trains=("attention", "norm") if small else ("attention", "norm", "mlp"),
        dtype="float32" if small else "bfloat16",
        teacher_dtype="float32" if small else "bfloat16",
    )
