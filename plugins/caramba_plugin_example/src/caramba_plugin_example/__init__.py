"""An example for authors of plugins."""
