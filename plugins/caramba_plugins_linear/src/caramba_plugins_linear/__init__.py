"""Linear attention with exact neighbours."""
