"""Documents in YAML and JSON in which every value knows where its user wrote it: read, filled in, written."""
