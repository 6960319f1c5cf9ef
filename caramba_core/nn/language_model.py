"""A built model: token ids in, logits out; plain torch."""

from __future__ import annotations

from collections.abc import Sequence as Names

import torch
from torch import Tensor, nn

from caramba_core.component import Attention
from caramba_core.errors import InputError
from caramba_core.graph import Graph, local_name
from caramba_core.nn.cache import Cache
from caramba_core.nn.compiling import plan_compilation
from caramba_core.nn.frame import Frame
from caramba_core.nn.sequence import Sequence, Wiring
from caramba_core.storage import Storage

__all__ = ["LanguageModel"]


class LanguageModel(Sequence):
    """Embedder, layers and head under the names of the graph, ``model.`` left out.

    ``model.blocks.3.attention`` in a manifest is ``get_submodule("blocks.3.attention")`` here.
    """

    def __init__(
        self, graph: Graph, embedder: nn.Module, layers: dict[str, nn.Module], wiring: Wiring, head: nn.Module
    ) -> None:
        super().__init__(layers, wiring)
        self.graph = graph
        self.embedder = embedder
        self.head = head

    def hidden(self, tokens: Tensor, frame: Frame | None = None) -> Tensor:
        """What the head reads: int64 ``[B, T] -> [B, T, D]``."""
        if frame is None:
            frame = Frame.of(tokens)
        if frame.starts is not None:
            self._require_starts()
        x = super().forward(self.embedder(tokens), frame)
        if frame.taps is not None:
            frame.taps.flush()
        if frame.cache is not None:
            frame.cache.advance(tokens.shape[1])
        return x

    def forward(self, tokens: Tensor, frame: Frame | None = None) -> Tensor:
        """Logits: int64 ``[B, T] -> [B, T, V]``."""
        return self.logits(self.hidden(tokens, frame))

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D] -> [..., V]``."""
        logits: Tensor = self.head(hidden, self.head_weight)
        return logits

    @property
    def head_weight(self) -> Tensor:
        """The ``[V, D]`` matrix of the head: the embedder's where embeddings are tied."""
        owner = self.embedder if self.graph.tied_embeddings else self.head
        weight = owner.weight
        assert isinstance(weight, Tensor)
        return weight

    def new_cache(self, batch: int, *, capacity: int | None = None, storage: Storage | None = None) -> Cache:
        """An empty cache in the model's dtype, on its device; with ``storage``, held in few bits."""
        weight = self.head_weight
        return Cache(
            self.graph, batch=batch, dtype=weight.dtype, device=weight.device, capacity=capacity, storage=storage
        )

    def tap(self, names: Names[str]) -> None:
        """Let ``frame.taps`` collect inputs and outputs of the nodes with these dotted names; no others."""
        wanted = {local_name(name) for name in names}
        for path, module in self.named_modules():
            if isinstance(module, Sequence):
                prefix = f"{path}." if path else ""
                module.tapped = frozenset(child for child in module.wiring_names() if prefix + child in wanted)
                wanted -= {prefix + child for child in module.tapped}
        assert not wanted, f"no such nodes: {sorted(wanted)}"

    def compile_blocks(self, *, backend: str = "inductor") -> tuple[str, ...]:
        """Compile each block as a whole; blocks of one kind share one compiled graph.

        Many blocks of sizes of their own are compiled layer by layer (:mod:`caramba_core.nn.compiling`).  Returns the
        names of the layers that stay uncompiled.
        """
        plan = plan_compilation(self)
        # a graph a kind, all of one function: torch's own limit counts them as recompilations
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, 2 * len(plan.compiled))
        for module in plan.compiled:
            module.compile(fullgraph=True, backend=backend)
        return plan.left

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, count: int, *, starts: Tensor | None = None, storage: Storage | None = None
    ) -> Tensor:
        """Greedy continuation of int64 ``[B, T]`` by ``count`` tokens, through a cache: ``[B, T + count]``.

        Prompts of unequal lengths stand right-aligned, ``starts`` ``[B]`` says where each begins.
        """
        cache = self.new_cache(tokens.shape[0], capacity=tokens.shape[1] + count, storage=storage)
        new = tokens
        for _ in range(count):
            hidden = self.hidden(new, Frame.of(new, cache=cache, starts=starts))
            new = self.logits(hidden[:, -1]).argmax(dim=-1, keepdim=True)
            tokens = torch.cat([tokens, new], dim=1)
        return tokens

    def generate_each(
        self, prompts: Names[Names[int]], count: int, *, storage: Storage | None = None
    ) -> list[list[int]]:
        """Greedy continuations of prompts of any lengths in one batch, each prompt and its ``count`` tokens."""
        assert prompts and all(prompts), "a prompt has at least one token"
        longest, device = max(map(len, prompts)), self.head_weight.device
        tokens = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        starts = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
        out = self.generate(tokens, count, starts=starts if bool(starts.any()) else None, storage=storage)
        return [row[start:] for row, start in zip(out.tolist(), starts.tolist(), strict=True)]

    def _require_starts(self) -> None:
        for name, node in self.graph.attentions().items():
            assert isinstance(node.config, Attention)
            if not node.config.takes_starts:
                raise InputError(
                    f"{name} ({type(node.config).__name__}) takes no sequences of unequal lengths in one batch",
                    hint="give them one by one",
                )
