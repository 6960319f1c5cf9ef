"""What decoding caches, allocated from what attentions declare in ``cache_spec``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from caramba_core.component import Attention, CacheEntry
from caramba_core.graph import Graph
from caramba_core.nn.storing import Tokens
from caramba_core.storage import Storage

__all__ = ["Cache", "LayerCache"]


class LayerCache:
    """The cache of one attention: ``[B, capacity, *shape]`` per-token entries, ``[B, *shape]`` states, which are zeros.

    An entry with a window holds that many tokens, oldest first: the first ``sinks`` of the text and the last ones.
    With a ``storage``, per-token entries are stored quantized, and reads dequantize.
    """

    def __init__(
        self,
        spec: Mapping[str, CacheEntry],
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
        storage: Storage | None = None,
    ) -> None:
        self.spec = spec
        self.batch = batch
        self.length = 0
        self._tokens: dict[str, Tokens] = {}
        self._states: dict[str, Tensor] = {}
        for name, entry in spec.items():
            if not entry.per_token:
                state_dtype = dtype if entry.dtype is None else getattr(torch, entry.dtype)
                self._states[name] = torch.zeros(batch, *entry.shape, dtype=state_dtype, device=device)
            else:
                self._tokens[name] = Tokens(entry, batch, dtype, device, storage)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything that is allocated; a quantized entry has two tensors, ``NAME.codes`` and ``NAME.blocks``."""
        planes = {
            f"{name}{suffix}": plane for name, tokens in self._tokens.items() for suffix, plane in tokens.planes.items()
        }
        return {**planes, **self._states}

    @property
    def bytes(self) -> int:
        """Bytes of the tensors as allocated."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def lossy(self) -> bool:
        """Whether any entry is quantized: reads return something else than what was appended."""
        return any(tokens.storage is not None for tokens in self._tokens.values())

    def reserve(self, capacity: int) -> None:
        """Make room for ``capacity`` tokens in all."""
        for tokens in self._tokens.values():
            tokens.reserve(capacity)

    def extend(self, **new: Tensor) -> dict[str, Tensor]:
        """Append ``[B, T, *shape]`` to every per-token entry; what the new tokens see, ``[B, S, *shape]`` each.

        That is all cached tokens and the new ones; once a window is full, the sinks, as many last tokens as the first
        new one sees beside itself (``window - sinks - 1``), and the new ones.  Attend to what is returned, not to what
        was passed in: the cache may quantize.  :meth:`Cache.advance` moves the length on, once all layers have run.
        """
        assert set(new) == set(self._tokens), "every entry grows together"
        return {name: self._tokens[name].append(values, self.length) for name, values in new.items()}

    def read(self, name: str, first: int, last: int) -> Tensor:
        """An entry's cached tokens in the places ``first`` to ``last`` (exclusive): ``[B, last - first, *shape]``."""
        return self._tokens[name].read(first, last)

    def round_trip(self, name: str, values: Tensor) -> Tensor:
        """``[B, T, *shape]`` as the entry would return them, quantized and dequantized; nothing is appended."""
        return self._tokens[name].decode(*self._tokens[name].encode(values))


class Cache:
    """The caches of a whole model for ``batch`` sequences.

    ``capacity`` allocates room for that many tokens at once; without one the cache grows by doubling.  ``storage`` says
    how per-token entries are quantized, if at all.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        batch: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        capacity: int | None = None,
        storage: Storage | None = None,
    ) -> None:
        self.length = 0
        self.batch = batch
        self._layers: dict[tuple[str, int], LayerCache] = {}
        for name, node in graph.attentions().items():
            assert isinstance(node.config, Attention)
            spec = node.config.cache_spec(node.width_in)
            for application in range(node.applications):
                layer = LayerCache(spec, batch, dtype, torch.device(device), storage)
                layer.reserve(capacity or 0)
                self._layers[name, application] = layer

    def layer(self, site: str, application: int = 0) -> LayerCache:
        """The cache of the attention with this dotted name, for one of its applications in a pass."""
        return self._layers[site, application]

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as allocated."""
        return sum(layer.bytes for layer in self._layers.values())

    def advance(self, tokens: int) -> None:
        """Count the tokens of the pass that just ended as cached."""
        self._move(self.length + tokens)

    def truncate(self, length: int) -> None:
        """Keep the first ``length`` tokens: speculative decoding drops rejected ones this way.

        States, and windows that have begun to slide, cannot go back (except to nothing): what they held is gone.
        """
        assert 0 <= length <= self.length, f"{length} tokens of {self.length} cannot be kept"
        for (site, _), layer in self._layers.items():
            for name, entry in layer.spec.items():
                gone = not entry.per_token or (entry.window is not None and self.length > entry.window)
                assert length in (0, self.length) or not gone, f"{name} of {site} cannot take tokens back"
                if length == 0 and not entry.per_token:
                    layer.tensors[name].zero_()
        self._move(length)

    def _move(self, length: int) -> None:
        self.length = length
        for layer in self._layers.values():
            layer.length = length
