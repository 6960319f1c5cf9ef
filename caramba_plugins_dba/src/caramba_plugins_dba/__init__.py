"""Decoupled Bottleneck Attention: attention, compressed cache, start from a teacher, presets."""
