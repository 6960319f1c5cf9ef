"""Presets of the example plugin."""
