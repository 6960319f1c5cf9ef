"""The checks, one file a concern; importing this package registers all of them."""

from caramba_plugins_testing.checks import configs, declarations, numerics, recording, tokens
from caramba_plugins_testing.registered import CHECKS

__all__ = ["CHECKS", "configs", "declarations", "numerics", "recording", "tokens"]
