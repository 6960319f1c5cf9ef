"""Sliding-window attention with sink tokens."""
