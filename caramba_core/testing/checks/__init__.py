"""The checks, one file a concern; importing this package registers all of them."""

from caramba_core.testing.checks import configs, declarations, numerics, recording, tokens
from caramba_core.testing.registered import CHECKS

__all__ = ["CHECKS", "configs", "declarations", "numerics", "recording", "tokens"]
