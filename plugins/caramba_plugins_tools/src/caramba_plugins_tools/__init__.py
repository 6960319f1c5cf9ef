"""Tools for authors of manifests and plugins: explain, JSON Schema, scaffolds, checks."""
