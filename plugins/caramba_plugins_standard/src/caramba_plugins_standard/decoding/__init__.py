"""Decoding: a model with its cache, step by step."""

from caramba_plugins_standard.decoding.decoder import Decoder

__all__ = ["Decoder"]
