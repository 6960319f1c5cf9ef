"""Manifests that this distribution carries: the path of each, under its name."""

from pathlib import Path
from typing import Final

__all__ = ["llama32_1b_dba", "llama32_1b_servable", "smollm2_135m_dba", "smollm2_135m_joint", "smollm2_135m_servable"]

smollm2_135m_dba: Final = Path(__file__).with_name("smollm2_135m_dba.yml")
smollm2_135m_joint: Final = Path(__file__).with_name("smollm2_135m_joint.yml")
smollm2_135m_servable: Final = Path(__file__).with_name("smollm2_135m_servable.yml")
llama32_1b_dba: Final = Path(__file__).with_name("llama32_1b_dba.yml")
llama32_1b_servable: Final = Path(__file__).with_name("llama32_1b_servable.yml")
