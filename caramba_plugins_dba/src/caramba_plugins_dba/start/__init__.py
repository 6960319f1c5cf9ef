"""The start of DBA from a teacher's attention: selection of pairs, semantic keys, values."""

from caramba_plugins_dba.start.assemble import common_pairs, start
from caramba_plugins_dba.start.case import StartCase
from caramba_plugins_dba.start.curves import size_curves
from caramba_plugins_dba.start.norms import start_behind_norms

__all__ = ["StartCase", "common_pairs", "size_curves", "start", "start_behind_norms"]
