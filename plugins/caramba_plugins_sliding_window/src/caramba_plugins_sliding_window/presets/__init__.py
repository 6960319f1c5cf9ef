"""Manifests that this distribution carries: the path of each, under its name."""

from pathlib import Path
from typing import Final

__all__ = ["smollm2_135m_sliding_window", "smollm2_135m_windows_dba"]

smollm2_135m_sliding_window: Final = Path(__file__).with_name("smollm2_135m_sliding_window.yml")
smollm2_135m_windows_dba: Final = Path(__file__).with_name("smollm2_135m_windows_dba.yml")
