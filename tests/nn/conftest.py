"""Small models for the tests of the torch side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, SwiGLU, TokenEmbedder
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Nested, Residual, Stacked

from caramba_core.components import Layer, Model
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel

VOCABULARY, WIDTH = 97, 24


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def attention() -> Callable[..., GroupedQueryAttention]:
    def make(**changes: Any) -> GroupedQueryAttention:
        return GroupedQueryAttention(**{"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "rope": Rope(), **changes})

    return make


@pytest.fixture
def block(attention: Callable[..., GroupedQueryAttention]) -> Callable[..., tuple[Layer, ...]]:
    def make(**changes: Any) -> tuple[Layer, ...]:
        return (
            Residual(layers=(RMSNorm(), attention(**changes))),
            Residual(layers=(RMSNorm(), SwiGLU(d_ff=40))),
        )

    return make


@pytest.fixture
def model_of() -> Callable[..., LanguageModel]:
    """A model whose layers between embedder and head are given; float64 and seeded."""

    def make(
        *layers: Layer, tied: bool = True, dtype: torch.dtype = torch.float64, seed: int | None = 0
    ) -> LanguageModel:
        model = Model(
            head=LinearHead(),
            tied_embeddings=tied,
            embedder=TokenEmbedder(vocab_size=VOCABULARY, d_model=WIDTH, init_std=1.0),
            topology=Stacked(layers=layers),
        )
        return build(lower(model), dtype=dtype, seed=seed)

    return make


@pytest.fixture
def llama(
    model_of: Callable[..., LanguageModel], block: Callable[..., tuple[Layer, ...]]
) -> Callable[..., LanguageModel]:
    """The shape of a Llama: ``repeat`` blocks and a norm; other arguments go to the attention."""

    def make(repeat: int = 3, tied: bool = True, dtype: torch.dtype = torch.float64, **changes: Any) -> LanguageModel:
        blocks = Nested(name="blocks", repeat=repeat, layers=block(**changes))
        return model_of(blocks, RMSNorm(), tied=tied, dtype=dtype)

    return make
