"""Documents in blocks of flex_attention, as on CUDA: which are left out; outputs and gradients are a mask's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from caramba_plugins_standard.training.batch import Batch
from caramba_plugins_standard.training.document_blocks import document_blocks
from caramba_plugins_standard.training.documents import PackedFrame, packed_frame
from torch import Tensor
from torch.nn.attention import flex_attention as library
from torch.nn.attention.flex_attention import create_block_mask

from .test_documents import ATTENTIONS, model_of

WINDOWS = [None, 40, 200]


def begins_of(tokens: int, seed: int = 0, share: float = 0.02) -> Tensor:
    """Where documents of some 50 tokens begin: int64 ``[2, T]``."""
    first = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed)) < share
    return (first * torch.arange(tokens)).cummax(1).values


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("tokens", [1, 127, 129, 256, 700])
def test_the_blocks_are_those_of_the_mask(tokens: int, window: int | None) -> None:
    """Those that are seen in part and those that are seen whole, as the library finds them from every pair."""
    for share in (0.0, 0.02, 0.9):
        begins = begins_of(tokens, share=share)
        place = torch.arange(tokens)
        least = begins if window is None else torch.maximum(begins, place - window + 1)
        wanted = create_block_mask(
            lambda b, h, q, k, least=least: (k <= q) & (k >= least[b, q]), 2, None, tokens, tokens, device="cpu"
        )
        found = document_blocks(begins, window)
        assert found.shape == wanted.shape
        for kind in ("kv", "q", "full_kv", "full_q"):
            counts = [getattr(blocks, f"{kind}_num_blocks") for blocks in (found, wanted)]
            assert torch.equal(*counts), kind
            for at in zip(*(counts[0] > 0).nonzero(as_tuple=True), strict=True):
                listed = [getattr(blocks, f"{kind}_indices")[at][: counts[0][at]] for blocks in (found, wanted)]
                assert torch.equal(*(one.sort().values for one in listed)), kind


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("tokens", [1, 129, 300])
def test_outputs_and_gradients_are_those_of_the_mask(
    tokens: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)  # it refuses gradients on a CPU, and has them
    begins = begins_of(tokens)
    masked = PackedFrame(positions=torch.arange(tokens) - begins, documents=begins)
    in_blocks = replace(masked, blocks={window: document_blocks(begins, window)})
    generator = torch.Generator().manual_seed(1)
    query, key, value, weight = (
        torch.randn(2, heads, tokens, 12, dtype=torch.float64, generator=generator, requires_grad=True)
        for heads in (6, 2, 2, 6)
    )
    results = []
    for frame in (in_blocks, masked):
        mixed = frame.attend(query, key, value, scale=0.3, window=window)
        results.append((mixed, *torch.autograd.grad((mixed * weight.detach()).sum(), (query, key, value))))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ATTENTIONS)
@torch.no_grad()
def test_logits_are_those_of_the_mask(name: str) -> None:
    """Of whole models, and of their layers in one graph, as torch.compile has them."""
    model, tokens = model_of(ATTENTIONS[name]), torch.randint(16, (2, 150), generator=torch.Generator().manual_seed(2))
    place = torch.arange(150)
    begins = begins_of(150) == place
    wanted = model(
        tokens,
        Batch(tokens=torch.cat([tokens, tokens[:, :1]], 1), begins=torch.cat([begins, begins[:, :1]], 1)).frame(model),
    )
    frame = packed_frame(model, tokens, begins, in_blocks=True)
    torch.testing.assert_close(model(tokens, frame), wanted, rtol=1e-5, atol=1e-5)
    if name in ("gqa", "dba with a window"):
        compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(tokens, frame), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", [name for name in ATTENTIONS if "sliding" not in name])
def test_a_step_on_cuda(name: str) -> None:
    """Logits and gradients of the kernels beside those of the mask."""
    model = model_of(ATTENTIONS[name]).cuda()
    tokens = torch.randint(16, (2, 300), generator=torch.Generator().manual_seed(2)).cuda()
    begins = (begins_of(300) == torch.arange(300)).cuda()
    results = []
    for in_blocks in (True, False):
        model.zero_grad()
        logits = model(tokens, packed_frame(model, tokens, begins, in_blocks=in_blocks))
        logits.square().mean().backward()
        results.append((logits, *(parameter.grad for parameter in model.parameters())))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())
