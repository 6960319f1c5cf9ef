"""Reading manifests: from a file or preset to typed configs, every problem with its place."""
