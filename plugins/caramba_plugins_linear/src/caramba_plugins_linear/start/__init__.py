"""The start of linear attention from a teacher's attention: its weights, and the maps of the far part."""

from caramba_plugins_linear.start.assemble import start

__all__ = ["start"]
