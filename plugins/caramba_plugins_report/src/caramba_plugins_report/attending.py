"""What one attention of a teacher and of its student looks at on the first held-out tokens: their probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np
from caramba_plugins_standard.opening import OpenedRun, load_checkpoint

from caramba_core.errors import InputError
from caramba_core.graph import matches

if TYPE_CHECKING:
    from torch import Tensor

    from caramba_core.graph import Graph
    from caramba_core.nn.language_model import LanguageModel

__all__ = ["AttentionMaps", "attention_maps"]

_TOKENS: Final = 32


@attrs.frozen(kw_only=True)
class AttentionMaps:
    """Probabilities ``[H, T, T]`` (row: a token, column: one that it attends to) of one attention, by model.

    ``attention`` is its name in the graph, ``tokens`` are the texts of the T tokens, ``missing`` says of models without
    probabilities why there are none.
    """

    attention: str
    tokens: list[str]
    maps: Mapping[str, np.ndarray[Any, Any]]
    missing: tuple[str, ...]

    @property
    def differing(self) -> list[int]:
        """Heads from the one in which two models differ most, by the share of probability that lies elsewhere."""
        if len(self.maps) < 2:
            return list(range(next(iter(self.maps.values())).shape[0])) if self.maps else []
        a, b = self.maps.values()
        if a.shape != b.shape:
            return []
        elsewhere = np.abs(a - b).sum(axis=(1, 2))
        return [int(head) for head in np.argsort(-elsewhere, kind="stable")]


def attention_maps(opened: OpenedRun, wanted: str, device: str) -> AttentionMaps:
    """The maps of the attention that ``wanted`` names: its place from 0 on, or a name or pattern of the graph.

    Each model attends in its own stream.  Raises :class:`InputError` where no single attention is meant, or where the
    run has no held-out tokens.
    """
    import torch

    from caramba_core.run.device import autocast

    student = opened.model(device).eval()
    checkpoint = opened.teacher()
    name = _attention(student.graph, wanted)
    tokenizer = None if checkpoint is None else checkpoint.tokenizer()
    tokens = opened.heldout_tokens(student.graph, tokenizer)
    ids = tokens.read(0, min(_TOKENS, len(tokens.ids)))
    models = {}
    if checkpoint is not None:
        assert opened.group.teacher is not None
        models["teacher"] = load_checkpoint(checkpoint, device, opened.group.teacher.dtype).eval()
    models[opened.path.resolve().name] = student
    maps, missing = {}, []
    for who, model in models.items():
        with torch.no_grad(), autocast(model.head_weight.device, opened.dtype):
            found = _probabilities(model, name, torch.from_numpy(ids)[None].to(model.head_weight.device))
        if isinstance(found, str):
            missing.append(f"{who}: {found}")
        else:
            maps[who] = found[0].float().cpu().numpy()
    texts = [str(one) if tokenizer is None else tokenizer.decode([one]) for one in ids.tolist()]
    return AttentionMaps(attention=name, tokens=texts, maps=maps, missing=tuple(missing))


def _attention(graph: Graph, wanted: str) -> str:
    names = list(graph.attentions())
    if wanted.isdecimal() and wanted.isascii():
        found = names[int(wanted) : int(wanted) + 1]
    else:
        found = [name for name in names if matches(name, wanted)]
    if len(found) != 1:
        what = f"{len(found)} attentions are named {wanted}" if found else f"there is no attention {wanted}"
        shown = ", ".join(names[:3]) + (f", … {names[-1]}" if len(names) > 3 else "")
        raise InputError(what, expected=f"0 to {len(names) - 1}, or one of: {shown}" if names else "a model with one")
    return found[0]


def _probabilities(model: LanguageModel, name: str, tokens: Tensor) -> Tensor | str:
    """Probabilities ``[B, H, T, T]`` of an attention in its place in the model, or why they are not to be had."""
    import torch

    from caramba_core.graph import local_name
    from caramba_core.nn.frame import Frame, Taps

    if name not in model.graph.attentions():
        return f"it has no {name}"
    module: Any = model.get_submodule(local_name(name))
    if not hasattr(module, "probe") and not hasattr(module, "probabilities"):
        kind = type(model.graph.attentions()[name].config).__name__
        return f"{name} ({kind}) does not tell its probabilities: it has neither probe nor probabilities"
    read: list[Tensor] = []
    model.tap([name])
    model.hidden(tokens, Frame.of(tokens, taps=Taps(lambda index, x, y: read.append(x))))
    model.tap([])
    frame, x = Frame.of(tokens), read[0]
    if hasattr(module, "probe"):
        probed: Tensor = module.probe(x, frame).probabilities
        return probed
    told: Tensor = module.probabilities(x, frame.positions, torch.arange(tokens.shape[1], device=x.device))
    return told
