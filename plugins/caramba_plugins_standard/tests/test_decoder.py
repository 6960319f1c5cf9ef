"""A decoder against whole passes: chunks of a prompt, steps, growing, taking back; recorded where there is a GPU."""

from __future__ import annotations

import pytest
import torch
from caramba_plugins_standard.decoding import Decoder
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.layers import LinearHead, RMSNorm, TokenEmbedder
from caramba_plugins_standard.quantized import Int8
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.topologies import Residual, Stacked

from caramba_core.components import Model
from caramba_core.lowering import lower
from caramba_core.nn.build import build
from caramba_core.nn.language_model import LanguageModel

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def model_on(device: str, *, window: int | None = None) -> LanguageModel:
    attention = GroupedQueryAttention(n_heads=4, n_kv_heads=2, head_dim=16, rope=Rope(theta=100.0), window=window)
    blocks = tuple(Residual(layers=(RMSNorm(), attention)) for _ in range(2))
    model = Model(embedder=TokenEmbedder(vocab_size=50, d_model=32), topology=Stacked(layers=blocks), head=LinearHead())
    return build(lower(model), seed=0).to(device).eval().requires_grad_(False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("chunk", [3, 5, 64])
def test_gives_what_whole_passes_give(device: str, window: int | None, chunk: int) -> None:
    model = model_on(device, window=window)
    ids = torch.randint(50, (3, 40), generator=torch.Generator().manual_seed(1)).to(device)
    wanted = model(ids)
    decoder = Decoder(model, batch=3, capacity=30)
    assert bool(decoder.unrecorded) is (device == "cpu")
    found = [decoder.prefill(ids[:, :12], chunk=chunk)]
    found += [decoder.step(ids[:, i]).clone() for i in range(12, 20)]
    decoder.grow(41)
    found += [decoder.step(ids[:, i]).clone() for i in range(20, 40)]
    torch.testing.assert_close(torch.stack(found, dim=1), wanted[:, 11:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_tokens_are_taken_back_and_sequences_start_where_they_do(device: str) -> None:
    model = model_on(device)
    ids = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(2)).to(device)
    starts = torch.tensor([0, 4], device=device)
    decoder = Decoder(model, batch=2, capacity=24)
    decoder.prefill(ids[:, :10], starts=starts)
    for i in range(4):
        decoder.step(ids[:, i])  # rejected
    decoder.truncate(10)
    found = torch.stack([decoder.step(ids[:, i]).clone() for i in range(10, 20)], dim=1)
    for row, start in enumerate(starts.tolist()):
        wanted = model(ids[row : row + 1, start:])[:, -10:]
        torch.testing.assert_close(found[row : row + 1], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_quantized_cache_takes_the_bytes_of_its_storage(device: str) -> None:
    model, storage = model_on(device), Int8()
    decoder = Decoder(model, batch=2, capacity=16, storage=storage)
    entries = [entry for layer in decoder.cache.layers() for entry in layer.spec.values()]
    assert decoder.cache.bytes == sum(2 * 16 * storage.bytes(entry) for entry in entries)
    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(3)).to(device)
    decoder.prefill(ids[:, :8])
    found = torch.stack([decoder.step(ids[:, i]).clone() for i in range(8, 12)], dim=1)
    torch.testing.assert_close(found, model(ids)[:, -4:], atol=0.05, rtol=0.05)
    assert decoder.cache.bytes == sum(2 * 16 * storage.bytes(entry) for entry in entries)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("storage", [None, Int8()], ids=["full", "int8"])
def test_several_tokens_of_one_sequence_are_scored_at_once(device: str, storage: Int8 | None) -> None:
    model = model_on(device)
    ids = torch.randint(50, (1, 30), generator=torch.Generator().manual_seed(4)).to(device)
    decoder, alone = (Decoder(model, batch=1, capacity=36, storage=storage) for _ in range(2))
    found = [decoder.prefill(ids[:, :12])[0]]
    decoder.score(ids[0, :3], 6)  # a draft that is rejected
    decoder.truncate(12)
    found += decoder.score(ids[0, 12:17], 6).clone()
    found += decoder.prefill(ids[:, 17:19]).clone()
    found += decoder.score(ids[0, 19:20], 6).clone()
    found += decoder.step(ids[:, 20]).clone()
    found += decoder.score(ids[0, 21:27], 6).clone()
    assert decoder.cache.length == 27
    wanted = [alone.prefill(ids[:, :12])[0], *(alone.step(ids[:, i])[0].clone() for i in range(12, 27))]
    del wanted[17 - 12 + 1]  # the logits between two tokens that were taken together
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_model_that_decoded_is_trained_on(device: str) -> None:
    model, other = model_on(device), model_on(device)
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(5)).to(device)
    Decoder(model, batch=2, capacity=9, compiled=False).prefill(ids)
    for each in (model, other):
        each.requires_grad_(True)
        each(ids).square().mean().backward()
        torch.optim.SGD(each.parameters(), lr=0.1).step()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=f"gradient of {name}")
        torch.testing.assert_close(one, two, msg=name)
    found = Decoder(model, batch=2, capacity=9).prefill(ids)
    torch.testing.assert_close(found, other(ids)[:, -1])
