"""The checks, one file a concern; importing this package registers all of them."""

from caramba_plugins_testing.case import CHECKS
from caramba_plugins_testing.checks import configs, declarations, numerics, recording, tokens

__all__ = ["CHECKS", "configs", "declarations", "numerics", "recording", "tokens"]
