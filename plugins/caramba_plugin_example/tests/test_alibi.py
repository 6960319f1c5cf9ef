"""caramba's test kit against ``alibi``, and its formula."""

from collections.abc import Callable

import pytest
import torch
from caramba_plugin_example.attention import AlibiAttention
from caramba_plugin_example.module import AlibiModule
from caramba_plugins_testing import Case


@pytest.mark.components(
    Case(config=AlibiAttention(n_heads=1), name="one_head", relative=True),
    Case(config=AlibiAttention(n_heads=4), name="four_heads", relative=True, bad_widths=(30,)),
)
def test_component(component_check: Callable[[], None]) -> None:
    """Every check of the kit that applies."""
    component_check()


def test_bias() -> None:
    """The slopes of the paper, and no later token."""
    bias = AlibiModule(AlibiAttention(n_heads=8), 16).bias(2, 3, torch.zeros(1))
    assert bias[0].tolist() == [[-0.5, 0.0, -torch.inf], [-1.0, -0.5, 0.0]]
    assert bias[7, 1, 0] == -2 * 2**-8
