"""The start of MLA from a teacher's attention: the shared rotary key, the joint latent, all weights."""

from caramba_plugins_mla.start.assemble import start

__all__ = ["start"]
