"""Manifests that this distribution carries: the path of each, under its name."""

from pathlib import Path
from typing import Final

__all__ = ["smollm2_135m"]

smollm2_135m: Final = Path(__file__).with_name("smollm2_135m.yml")
