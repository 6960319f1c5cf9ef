"""The start of DBA from a teacher's attention: selection of pairs, semantic keys, values."""

from caramba_plugins_dba.start.assemble import start

__all__ = ["start"]
