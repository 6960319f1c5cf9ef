"""Every check of the kit fails on a component with the fault that it is there for."""

from __future__ import annotations

import pytest
from caramba_plugins_testing import Case, CheckFailed
from caramba_plugins_testing.checks import CHECKS

from tests.plugins.broken_components import (
    Blunt,
    BrokenAttention,
    BrokenLinear,
    Misleading,
    Trusting,
    Undocumented,
)
from tests.plugins.tiny import TinyAttention, TinyLinear

FOUND = [
    ("causality", "looks ahead", "is not causal: with other tokens from position 1 on"),
    ("causality", "is blind", "ignores its input"),
    ("decoding", "forgets the cache", "decoding token by token differs from the full pass .* first at position 1"),
    ("rounding", "prefills unrounded", "4 bits, decoding at once differs from decoding token by token"),
    ("padding", "sees padding", "a sequence behind 2 tokens of padding differs from it alone"),
    ("documents", "sees other documents", "documents that end behind 1 and 3 tokens differ from each alone"),
    ("truncation", "never forgets", "after taking tokens back"),
    ("positions", "minds the shape of positions", r"given as \[B, T\] change the output"),
    ("relative_positions", "has absolute positions", "claims relative positions, but starting at position 1 "),
    ("batch_independence", "normalizes over the batch", "see each other in the full pass"),
    ("gradients", "detaches", "no gradient reaches attention.q_proj"),
    ("gradients", "has infinite gradients", "is not finite"),
    ("derivatives", "computes in half", "the gradient says"),
    ("derivatives", "goes back another way", "the gradient says"),
    ("precision", "cancels badly", "float32 differs from float64"),
    ("precision", "always gives float32", "an input in torch.float64 gives an output in torch.float32"),
    ("bfloat16_drift", "cancels", "bfloat16 is off by"),
    ("round_trip", "draws at construction", "after saving and loading, the outputs differ"),
    ("determinism", "draws from another generator", "two passes from one seed differ in evaluation"),
    ("compilation", "asks the device", "breaks its graph"),
    ("recording", "asks the device", "needs values of its tensors on the CPU"),
    ("recording", "makes tensors on the CPU", "mixes devices"),
    ("recording", "writes its frequencies anew", "copies a tensor of 32 values to its device"),
    ("declared_weights", "owns an undeclared parameter", "has an undeclared weight: attention.secret"),
    ("declared_weights", "declares more weights", "declares a weight that its module does not have: attention.extra"),
    ("declared_operations", "forgets a projection", "operations for a pass over 12 tokens"),
    ("declared_operations", "forgets the context in decoding", "operations for decoding a token after 11"),
    ("declared_cache", "declares a state that it never writes", "never writes it"),
    ("declared_cache", "hoards", r"keeps \+768 values in its module while decoding"),
    ("probing", "probes something else", "the probe's output differs"),
    ("probing", "probes the future", "look ahead"),
    ("mixing", "", r"o_proj\(mix\(x\)\) differs"),
]


@pytest.mark.parametrize(("check", "fault", "message"), FOUND, ids=[f"{check}-{fault}" for check, fault, _ in FOUND])
def test_fault_of_an_attention(check: str, fault: str, message: str) -> None:
    case = Case(config=BrokenAttention(n_heads=1, fault=fault), relative=True)
    assert CHECKS[check].applies(case)
    with pytest.raises(CheckFailed, match=message):
        CHECKS[check].run(case)


FOUND_IN_LAYERS = [
    ("tokenwise", Case(config=BrokenLinear(fault="mixes tokens")), "mixes tokens: .* first at position 1"),
    ("declared_shape", Case(config=BrokenLinear(fault="lies about its width")), r"declares outputs \[1, 1, 33\]"),
    ("light", Case(config=BrokenLinear(fault="")), "imports numpy torch|imports torch"),
    ("documented", Case(config=Undocumented()), "the field depth has no help"),
    ("bad_configs", Case(config=Trusting(), bad=({"depth": 0},)), "depth=0 is accepted"),
    ("bad_configs", Case(config=Blunt(), bad=({"depth": 0},)), "raises ValueError, which points at no field"),
    (
        "bad_configs",
        Case(config=Misleading(), bad=({"depth": 0},)),
        "depth=0 is refused, but the message blames 'width_out'",
    ),
    ("bad_configs", Case(config=TinyLinear(), bad_widths=(7,)), "an input width of 7 is accepted"),
]


@pytest.mark.parametrize(
    ("check", "case", "message"),
    FOUND_IN_LAYERS,
    ids=[f"{check}-{case.name}" for check, case, _ in FOUND_IN_LAYERS],
)
def test_fault_of_a_layer(check: str, case: Case, message: str) -> None:
    assert CHECKS[check].applies(case)
    with pytest.raises(CheckFailed, match=message):
        CHECKS[check].run(case)


def test_every_check_is_proven() -> None:
    assert {check for check, *_ in (*FOUND, *FOUND_IN_LAYERS)} == set(CHECKS)


@pytest.mark.components(
    Case(config=TinyAttention(n_heads=2), relative=True, bad=({"n_heads": 0},), bad_widths=(33,)),
    Case(config=TinyLinear(width_out=5)),
)
def test_sound_components_pass(component_check) -> None:  # type: ignore[no-untyped-def]
    component_check()
