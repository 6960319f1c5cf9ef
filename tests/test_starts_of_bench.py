"""The variants of ``bench/dba_start.py``: each is accepted, and the ablation changes one thing at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caramba_plugins_dba.attention import DecoupledBottleneckAttention
from caramba_plugins_dba.transplant import GQAToDBA
from caramba_plugins_standard.gqa import GroupedQueryAttention
from caramba_plugins_standard.rope import Rope
from caramba_plugins_upcycle.modes import Start

from bench.dba_start import FULL, Texts, Variant, variants

SOURCE = GroupedQueryAttention(n_heads=9, n_kv_heads=3, head_dim=64, rope=Rope(theta=100000.0))


def settings(variant: Variant) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Of attention, transplant and start, as they are used."""
    sem, geo, values = variant.sizes
    shared = {name: getattr(SOURCE, name) for name in ("n_heads", "n_kv_heads", "head_dim", "rope")}
    target = DecoupledBottleneckAttention(
        **shared, sem_dim=sem, geo_dim=geo, v_dim=values, o_bias=True, **variant.options
    )
    transplant = GQAToDBA(**variant.transplant)
    transplant.check(SOURCE, target, 576)
    start = Start(transplant=transplant, **variant.start)
    fields = {name: getattr(start, name) for name in variant.start}
    return vars_of(target), vars_of(transplant), fields


def vars_of(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in config.__attrs_attrs__}


@pytest.mark.parametrize("name", variants())
def test_a_variant_is_accepted(name: str) -> None:
    settings(variants()[name])


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("pairs by energy", {"selection": "norm"}),
        ("pairs by frequency", {"selection": "frequency"}),
        ("mean rotation folded", {"fold": "mean"}),
        ("its phase folded", {"fold": "phase"}),
        ("nothing weighed by calibration", {"weighting": "none"}),
    ],
)
def test_an_ablation_of_the_transplant_changes_one_setting(name: str, changed: dict[str, str]) -> None:
    ours, whole = settings(variants()[f"ablation {name}"]), settings(FULL)
    assert ours[0] == whole[0]
    assert {key: value for key, value in ours[1].items() if value != whole[1][key]} == changed
    assert ours[2] == whole[2]


def test_several_texts_give_calibration_windows_in_turn(tmp_path: Path) -> None:
    for name in ("a", "b", "heldout", "heldout_moby"):
        np.save(tmp_path / f"{name}.npy", np.full(400, ord(name[0]), np.uint16))
    texts = Texts(tmp_path, [tmp_path / "a.npy", tmp_path / "b.npy"], torch.device("cpu"), 4)
    drawn = torch.cat(texts.calibration(40))[:, 0].tolist()
    assert drawn == [ord("a"), ord("b")] * 5
    assert [name for name, _ in texts.measured(1)] == ["own", "heldout", "heldout_moby"]
