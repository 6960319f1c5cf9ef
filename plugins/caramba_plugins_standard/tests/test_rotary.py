"""Turning queries and keys."""

from __future__ import annotations

import pytest
import torch
from caramba_plugins_standard.rope import Rope
from caramba_plugins_standard.rotary import Rotary, cos_sin, rotate, rotate_reference


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (2, 3, 5, 8), (3, 1, 7, 6)], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_rotate_and_its_gradients_follow_the_formula(shape: tuple[int, ...], transposed: bool) -> None:
    batch, heads, tokens, width = shape
    x = torch.randn(batch, tokens, heads, width, dtype=torch.float64).transpose(1, 2)
    x = (x if transposed else x.contiguous()).requires_grad_()
    cos, sin = cos_sin(torch.rand(width // 2, dtype=torch.float64), torch.arange(tokens))
    expected = rotate_reference(x, cos, sin)
    found = rotate(x, cos, sin)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    (wanted,) = torch.autograd.grad(expected, x, gradient)
    (got,) = torch.autograd.grad(found, x, gradient)
    torch.testing.assert_close(got, wanted)
    assert torch.autograd.gradcheck(lambda v: rotate(v, cos, sin), (x,))
    assert torch.autograd.gradgradcheck(lambda v: rotate(v, cos, sin), (x,))


def test_pairs_turn_as_complex_numbers() -> None:
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    frequencies = torch.rand(4, dtype=torch.float64)
    positions = torch.tensor([0, 3, 4, 100, 7])
    turn = torch.polar(torch.ones(5, 4, dtype=torch.float64), positions[:, None] * frequencies)
    expected = torch.complex(x[..., :4], x[..., 4:]) * turn
    found = rotate(x, *cos_sin(frequencies, positions))
    torch.testing.assert_close(found, torch.cat([expected.real, expected.imag], dim=-1))


def test_only_the_distance_counts() -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    frequencies = torch.tensor(Rope().frequencies(16), dtype=torch.float64)

    def score(at: int, to: int) -> torch.Tensor:
        return (
            rotate(query, *cos_sin(frequencies, torch.tensor([at])))
            * rotate(key, *cos_sin(frequencies, torch.tensor([to])))
        ).sum()

    torch.testing.assert_close(score(9, 4), score(1009, 1004), rtol=1e-11, atol=1e-11)


def test_shapes_of_groups_and_batches() -> None:
    positions = torch.arange(5)
    each = torch.stack([positions, positions + 2])
    assert cos_sin(torch.rand(4), positions)[0].shape == (1, 5, 4)
    assert cos_sin(torch.rand(4), each)[0].shape == (2, 1, 5, 4)
    assert cos_sin(torch.rand(3, 4), positions)[0].shape == (3, 5, 4)
    assert cos_sin(torch.rand(3, 4), each)[0].shape == (2, 3, 5, 4)
    x = torch.randn(2, 3, 5, 8)
    frequencies = torch.rand(3, 4)
    together = rotate(x, *cos_sin(frequencies, each))
    for sequence in range(2):
        for group in range(3):
            alone = rotate(x[sequence, group][None, None], *cos_sin(frequencies[group], each[sequence]))
            torch.testing.assert_close(together[sequence, group], alone[0, 0])


def test_narrow_types_are_turned_in_float32() -> None:
    x = torch.randn(2, 3, 300, 8).to(torch.bfloat16)
    cos, sin = cos_sin(torch.tensor(Rope().frequencies(8)), torch.arange(300))
    found = rotate(x, cos, sin)
    assert found.dtype == torch.bfloat16
    expected = rotate_reference(x.float(), cos, sin).to(torch.bfloat16)
    assert (found == expected).float().mean() > 0.99  # two orders of float32 operations round a few to a neighbour
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-16)


def test_casting_a_model_leaves_frequencies_exact() -> None:
    rotary = Rotary(Rope(), 16)
    exact = torch.tensor(Rope().frequencies(16), dtype=torch.float64)
    assert torch.equal(rotary.to(torch.bfloat16).frequencies, exact.float())
    assert torch.equal(rotary.half().frequencies, exact.float())
    assert torch.equal(rotary.double().frequencies, exact)
    assert torch.equal(rotary.to("meta").to_empty(device="cpu").frequencies, exact)
    assert not rotary.state_dict()


@pytest.mark.parametrize("rotated", [None, 8])
@pytest.mark.parametrize("tokens", [5, 8, 9, 40])
def test_dynamic_scaling_follows_the_longest_position(tokens: int, rotated: int | None) -> None:
    rope = Rope(scaling="dynamic", factor=2.0, original_max_position_embeddings=8, rotated=rotated)
    rotary = Rotary(rope, 16).double()
    positions = torch.arange(tokens)
    expected = cos_sin(torch.tensor(rope.frequencies(16, tokens), dtype=torch.float64), positions)
    torch.testing.assert_close(rotary(positions), expected)


def test_yarn_multiplies_cosines_and_sines() -> None:
    rope = Rope(scaling="yarn", factor=4.0, original_max_position_embeddings=64)
    cos, sin = Rotary(rope, 16).double()(torch.arange(3))
    torch.testing.assert_close(cos**2 + sin**2, torch.full_like(cos, rope.attention_scaling**2))
