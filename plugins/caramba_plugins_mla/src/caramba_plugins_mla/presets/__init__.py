"""Manifests that this distribution carries: the path of each, under its name."""

from pathlib import Path
from typing import Final

__all__ = ["smollm2_135m_mla", "smollm2_135m_mla_servable"]

smollm2_135m_mla: Final = Path(__file__).with_name("smollm2_135m_mla.yml")
smollm2_135m_mla_servable: Final = Path(__file__).with_name("smollm2_135m_mla_servable.yml")
