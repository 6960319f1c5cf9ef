"""The bytes per token that tables of the front and the groups of a preset are named after, as plans count them."""

from __future__ import annotations

from pathlib import Path

import pytest
from caramba_plugins_dba.presets import smollm2_135m_joint
from caramba_plugins_sliding_window.presets import smollm2_135m_windows_dba

from caramba_core.lowering import lower
from caramba_core.manifest.load import load_manifest
from caramba_core.plan.nodes import plan_model

FRONT = Path(__file__).parents[1] / "bench" / "front.yml"
TEACHER = 23040
"""Bytes per token of SmolLM2-135M in bfloat16."""


@pytest.mark.parametrize(
    ("manifest", "sizes"),
    [
        (
            FRONT,
            {
                "half_int8": TEACHER // 2,
                "third_int4": 7200,
                "quarter_int4": TEACHER // 4,
                "fifth_int4": 4980,
                "seventh_int4": 3360,
                "eighth_int4": TEACHER // 8,
            },
        ),
        (smollm2_135m_joint, {"x2_int8": TEACHER // 2, "x4_int4": TEACHER // 4, "x8_int4": TEACHER // 8}),
    ],
)
def test_bytes_per_token(manifest: Path, sizes: dict[str, int]) -> None:
    groups = {group.name: group for group in load_manifest(str(manifest)).manifest.groups}
    found = {name: plan_model(lower(groups[name].model), context=1024).cached_bytes(1024) / 1024 for name in sizes}
    assert found == sizes


@pytest.mark.parametrize("manifest", [smollm2_135m_windows_dba, FRONT.with_name("front_windows.yml")])
def test_bytes_with_windows_depend_on_the_context(manifest: Path) -> None:
    (group,) = load_manifest(str(manifest)).manifest.groups
    found = {at: round(plan_model(lower(group.model), context=at).cached_bytes(at) / at) for at in (4096, 8192)}
    assert found == {4096: 3397, 8192: 2658}
    for window, size in ((185, 3397), (390, 4998)):
        (group,) = load_manifest(manifest, overrides=[f"vars.window={window}"]).manifest.groups
        assert round(plan_model(lower(group.model), context=1024).cached_bytes(1024) / 1024) == size
