"""The plugin platform: what is installed (metadata only), what it supplies, and its hooks."""

from typing import Final

__all__ = ["API_VERSION"]

API_VERSION: Final = "1.0"
"""Version of what plugins may rely on: the names in ``docs/plugins.md``.

A new major version takes something away; plugins written for another one are refused.  A new minor version only adds.
"""
