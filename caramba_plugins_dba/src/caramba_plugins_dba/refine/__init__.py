"""Least squares on calibration tokens behind the closed forms of the start: queries, keys, values."""

from caramba_plugins_dba.refine.logits import LogitFit
from caramba_plugins_dba.refine.mixtures import ValueFit
from caramba_plugins_dba.refine.run import refine

__all__ = ["LogitFit", "ValueFit", "refine"]
